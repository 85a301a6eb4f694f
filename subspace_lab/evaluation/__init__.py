"""Evaluate a model with or without an adapter: each module takes a model and its tokenizer.

- `accuracy`: generate answers, score them with the task's own scorer;
- `likelihood`: loss on the responses, exact match, multiple choice by likelihood;
- `mt_bench`: two-turn chat, judged by a model;
- `code_execution`: HumanEval and MBPP, pass@1;
- `lm_eval_bridge`: any task of lm-eval, and the LLM-Adapters sets as lm-eval tasks;
- `records`: results in a run folder;
- `configuration`: the settings of an evaluation;
- `trained_model`: the model of a run;
- `by_task`: what `python -m subspace_lab.evaluate` does for each kind of task.
"""
