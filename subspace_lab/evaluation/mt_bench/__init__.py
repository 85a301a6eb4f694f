"""MT-Bench (Zheng et al., 2023, arXiv:2306.05685): 80 two-turn questions and a model as judge.

    from subspace_lab.evaluation import mt_bench

    material = mt_bench.load_material()                     # or a FastChat question.jsonl
    answers = mt_bench.answer(model, tokenizer, material.questions, file="answers.jsonl")
    judge = mt_bench.Judge("gpt-4", base_url="https://...") # key: OPENAI_API_KEY
    records = mt_bench.judge_answers(material, answers, judge, file="judgements.jsonl")
    mt_bench.mt_bench_score(records)

Answers are greedy, where FastChat samples at temperature 0.7 (writing, roleplay) or 0.1 (stem,
humanities): a greedy answer can be made again, and the judge's own spread remains. Say so beside
published scores. Question texts, reference answers and judge prompts are read from FastChat's
files at run time. Of the 30 reference answers by GPT-4 several are known to be wrong.
"""

from subspace_lab.evaluation.mt_bench.answers import answer
from subspace_lab.evaluation.mt_bench.judge import Judge, parse_score
from subspace_lab.evaluation.mt_bench.judgements import judge_answers
from subspace_lab.evaluation.mt_bench.questions import Material, Question, load_material
from subspace_lab.evaluation.mt_bench.score import MTBenchScore, mt_bench_score

__all__ = [
    "Judge",
    "MTBenchScore",
    "Material",
    "Question",
    "answer",
    "judge_answers",
    "load_material",
    "mt_bench_score",
    "parse_score",
]
