"""The heavy steps of a study by several processes: training and attention together, then samples.

    accelerate launch --multi_gpu --num_processes 4 -m tools.launch --profile full
    make run PROFILE=full

The second command, with the same settings, finds these steps made and goes on with the notebooks.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import DatasetDict

from helpers.attention.edges import knockout_measures
from helpers.attention.extract import extract_once, measure_attention, measure_random_models
from helpers.attention.modality import measure_modality
from helpers.attention.relevance import relevance_measures
from helpers.data import prepare
from helpers.data.encode import EncodedQuestions
from helpers.heads.compression import measure_importance_on_train
from helpers.heads.removal import measure_joint, measure_removals
from helpers.model import finetune
from helpers.run.cache import cached_step
from helpers.run.settings import Study
from tools.command import add_settings, read_settings

WAIT = timedelta(days=1)  # processes wait for the first one while it downloads


def make_together(
    state: PartialState, folder: Path, make: Callable[[Path], None], inputs: dict
) -> Path:
    """`cached_step` by all processes of `state`: each calls make on the same unfinished folder.

    make must leave to each process a share of its own, or agree with the others (as the Trainer
    does). The main process alone looks whether the step is up to date, and finishes the folder.
    """
    called = []

    def make_with_others(part: Path) -> None:
        called.append(part)
        broadcast_object_list([part])  # the others wait for it
        make(part)
        state.wait_for_everyone()  # nobody writes into it any more

    if state.is_main_process:
        cached_step(folder, make_with_others, inputs)
        if not called:
            broadcast_object_list([None])
    else:
        (part,) = broadcast_object_list([None])
        if part is not None:
            make(part)
            state.wait_for_everyone()
    state.wait_for_everyone()
    return folder


def run_steps(study: Study) -> None:
    """Prepare, fine-tune and measure a study with all processes that accelerate has started."""
    state = PartialState(cpu=study.device_name() == "cpu", timeout=WAIT)
    if state.is_main_process:
        print(f"{state.num_processes} processes on {state.device.type}")
    once = partial(make_together, state)
    together = {"once": once, "process": (state.process_index, state.num_processes)}
    with state.main_process_first():
        prepare.prepare_dataset(study)
    data = prepare.load_dataset(study)
    if study.finetune:
        finetune.finetune(study, data, once)
    model, processor = finetune.load_finetuned(study)
    model.to(state.device)
    encoded = prepare.encode(study, data["validation"], processor)
    measure_attention(study, model, encoded, **together)
    given = (study, "relevance", model, encoded, relevance_measures)
    extract_once(*given, exact=True, **together)
    measure_random_models(study, model, encoded, **together)
    measure_samples(study, data, encoded, state)
    state.wait_for_everyone()


def measure_samples(
    study: Study, data: DatasetDict, encoded: EncodedQuestions, state: PartialState
) -> None:
    """Removals, knockout, pairs and sets of heads, words withheld: one process a step, in turn.

    On samples, whose questions are too few for several processes to share; encoded: the validation
    questions, for all models (`check_models`).
    """
    train, validation = data["train"], data["validation"]
    for number in range(max(1, len(study.models))):
        model, processor = finetune.load_finetuned(study, number)
        model.to(state.device)
        given = (study, model, encoded)
        cut = (study, "knockout", model, encoded, knockout_measures, study.knockout_questions)
        steps = [
            partial(measure_removals, study, model, processor, validation, number),
            partial(extract_once, *cut, number=number),
            partial(measure_joint, *given, "pairs", number),
            partial(measure_joint, *given, "sets", number),
            partial(measure_modality, *given, number),
        ]
        if number == 0:
            steps.append(partial(measure_importance_on_train, study, model, processor, train))
        first = (state.process_index - number) % state.num_processes
        for step in steps[first :: state.num_processes]:
            step()


def main(words: list[str] | None = None) -> int:
    """Command line, in each process; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_settings(parser)
    try:
        run_steps(Study.load(**read_settings(parser.parse_args(words))))
    except (ValueError, OSError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except torch.cuda.OutOfMemoryError:
        advice = "--set device_batch_size=... (training) or extract_batch_size=... (measuring) less"
        print(f"stopped: a GPU's memory is too small; {advice}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
