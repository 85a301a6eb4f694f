"""Write the shortest problems of GSM8K as a task of one's own, for x7-short.

    python -m experiments.short_gsm8k --data_dir DATA --out FOLDER    # FOLDER/short-gsm8k.jsonl

On a processor a training step costs what its tokens cost. So x7-short takes the problems that have
at most MAX_TOKENS tokens with their solution, of both of GSM8K's splits, in the short template of
the built-in tasks; a hash of the prompt splits them anew (`tasks.own_files`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from subspace_lab import tasks
from subspace_lab.errors import exit_code_2_on_user_error
from subspace_lab.files import write_utf8
from subspace_lab.models import find_base, load_tokenizer
from subspace_lab.tasks.encoding import encode_prompt, encode_response
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import STEP_BY_STEP, alpaca_instruction, plain

MAX_TOKENS = 96
NAME = "short-gsm8k.jsonl"


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.short_gsm8k",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", type=Path, help="holds math/gsm8k_*.jsonl (default: the hub)")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the file")
    arguments = parser.parse_args()
    examples = [
        example
        for split in ("train+validation", "test")
        for example in tasks.load("gsm8k", split, data_dir=arguments.data_dir)
    ]
    short = short_problems(examples, load_tokenizer(find_base("smollm2")))
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(problem) + "\n" for problem in short)
    write_utf8(arguments.out / NAME, lines)
    print(f"wrote {len(short)} of {len(examples)} problems to {arguments.out / NAME}")


def short_problems(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, *, most: int = MAX_TOKENS
) -> list[dict[str, str]]:
    """Choose the problems of at most `most` tokens, prompt, solution and end of sequence.

    Returns:
        Of each `prompt`, in the short template, and `response`.
    """
    chosen = []
    for example in examples:
        prompt = plain(alpaca_instruction(example.prompt.removesuffix(STEP_BY_STEP)))
        tokens = encode_prompt(tokenizer, prompt)
        tokens += encode_response(tokenizer, example.response, with_eos=True)
        if len(tokens) <= most:
            chosen.append({"prompt": prompt, "response": example.response})
    return chosen


if __name__ == "__main__":
    main()
