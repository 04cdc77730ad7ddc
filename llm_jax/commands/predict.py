"""`predict`: batch inference on the rows of a file, as JSONL."""

import argparse
import fcntl
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from llm_jax.commands.verb import Verb, add_ensemble, read_otherwise, tell
from llm_jax.config import ConfigError
from llm_jax.console import counted
from llm_jax.files import is_full, parse_json

ABOUT = """Predicts labels, entities, answers, … for each row of a file.

The input is read like training data (.jsonl, .tsv, .csv, .conll …), with the training set's columns
or the field names (text …); --config.data.text_column=NAME … set others. In other files, and in
standard input ("-"), each line is a text or a JSON object. Output rows hold the input and the
prediction, in input order; an invalid row has an "error". An existing output is continued after its
last complete line."""

EVERY = 5.0  # seconds between progress messages


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--input", required=True, help="a file, or - for standard input")
    sub.add_argument("--output", required=True, help=(
        "the JSONL file to write or continue; - for standard output"))
    sub.add_argument("--batch_size", type=int, help="rows per batch; default data.batch_size")
    add_ensemble(sub)


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    if args.input != "-" and not Path(args.input).exists():
        raise ConfigError(f"--input={args.input}: no such file")
    from llm_jax import sharding
    from llm_jax.train import Restart, ensemble
    from llm_jax.train.predict import answerer, predict

    setup, tokenizer, params, step = ensemble.load([args.workdir, *args.ensemble], args.step)
    read_otherwise(setup.config, overrides)
    if args.batch_size is not None:
        if args.batch_size < 1:
            raise ConfigError(f"--batch_size={args.batch_size}: must be at least 1")
        setup.config.data.batch_size = args.batch_size
    examples, size = setup.objective.examples(tokenizer, setup.config), setup.config.data.batch_size
    answer = setup.writer(tokenizer)
    answer = answer or answerer(setup.model, setup.objective, examples, setup.mesh)
    rows = _rows(args.input, examples, setup.objective.writes)
    output = None if args.output == "-" else Path(args.output)
    file = nullcontext(sys.stdout) if output is None else _opened(output)
    done = 0 if output is None else _continued(output, rows)
    read = []  # rows without a prediction yet

    def documents() -> Iterator[Any]:
        for record, document in rows:
            read.append(record)
            yield document

    answers, refused = predict(answer, params, documents(), size), {}
    try:
        with file as lines, sharding.activate(setup.mesh):
            count = _write(lines, answers, read, refused, done)
    except OSError as error:
        if is_full(error):
            raise Restart(f"--output={output}: the disk is full; free some space, then the same "
                          "command continues") from error
        raise
    for row, n in refused.values():
        if n > 1:
            tell(f"{counted(n - 1, 'more rows')} like row {row}")
    errors = sum(n for _, n in refused.values())
    if 0 < count == errors and not done:
        if output:
            output.unlink()
        raise ConfigError(f"--input={args.input}: no row can be read")
    progress = counted(done + count, "rows") + f", {done:,} of them from before" * bool(done)
    where = f"; they are in {output}" * bool(output)
    tell(f"step {step}: {progress}, {errors:,} of them could not be read{where}")
    return {"step": step, "rows": done + count, "errors": errors, "output": args.output}


def _write(
    lines: TextIO, answers: Iterator[dict], read: list[dict], refused: dict[str, list[int]],
    done: int,
) -> int:  # fmt: skip
    """Writes each row with its prediction, and reports progress; returns the number of rows.

    refused: collects {kind of error: [first row, number of rows]}; the first of a kind is printed.
      Messages that differ only in numbers are of the same kind.
    """
    count, told = 0, time.time()
    for count, found in enumerate(answers, start=1):
        if "error" in found:
            first = refused.setdefault(re.sub(r"\d+", "", found["error"]), [done + count, 0])
            first[1] += 1
            if first[1] == 1:
                tell(f"row {done + count}: {found['error']}")
        lines.write(json.dumps(read.pop(0) | found, ensure_ascii=False, default=str) + "\n")
        if time.time() - told > EVERY:
            lines.flush()
            tell(counted(done + count, "rows"))
            told = time.time()
    return count


def _rows(path: str, examples: Any, writes: bool = False) -> Iterator[tuple[dict, Any]]:
    """Yields each row and its document, or the ConfigError for an invalid row.

    writes: predictions have a `text`; an input `text` is then renamed to its field.
    """
    from llm_jax.data import files
    from llm_jax.train.predict import document

    data, file = examples.config.data, "/dev/stdin" if path == "-" else path
    # All columns of training: they determine whether a table has a header.
    wanted = examples.columns(examples.config)
    columns = {data[f"{name}_column"]: name for name in wanted}
    fields = {column: name for column, name in columns.items() if column.isdecimal()}
    for where, record in files.rows(file, columns, "tokens" in wanted, lines=True):
        if isinstance(record, ConfigError):
            yield {}, record
        else:  # numbered columns get the name of their field in the output
            own = {"text": wanted[0]} if writes and wanted[0] not in record else {}
            shown = {(fields | own).get(name, name): value for name, value in record.items()}
            yield shown, document(examples, record, where)


def _opened(output: Path) -> TextIO:
    """Opens the output for appending, locked against other processes."""
    try:
        file = output.open("a", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        raise ConfigError(f"--output={output}: no folder {output.parent}") from None
    except BlockingIOError:
        raise ConfigError(f"--output={output}: another process is writing to it") from None
    return file


def _continued(output: Path, rows: Iterator[tuple[dict, Any]]) -> int:
    """Returns the number of rows in the output; skips as many in the input.

    Removes an incomplete last line.

    Raises:
      ConfigError: the output belongs to another input.
    """
    done, end, last = 0, 0, b"{}"
    with output.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                done, end, last = done + 1, end + len(line), line
        file.truncate(end)
    before = [record for record, _ in islice(rows, done)]
    written = parse_json(last.decode("utf-8", "replace"), f"--output={output}, line {done}")
    here = {name for name, value in (before or [{}])[-1].items() if written.get(name) == value}
    if len(before) < done or (done and before[-1] and not here):
        raise ConfigError(f"--output={output}: its {counted(done, 'rows')} do not match --input; "
                          "name another file")
    return done


VERB = Verb(run, add, "predict labels, entities, answers … for each row", keys=True, about=ABOUT)
