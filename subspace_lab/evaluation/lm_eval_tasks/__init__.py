"""The eight commonsense sets of LLM-Adapters (Hu et al., 2023) as lm-eval tasks.

    lm_eval --model hf --model_args pretrained=BASE,peft=ADAPTER \
        --include_path subspace_lab/evaluation/lm_eval_tasks \
        --tasks llm_adapters_commonsense --metadata '{"data_dir": "DATA"}'

DATA/commonsense/SET/test.json are LLM-Adapters' own files; without metadata the hub is read. The
group's score is the plain mean over the sets, as published tables take it.
"""
