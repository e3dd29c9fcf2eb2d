"""What `./spine tap` does: records of a live spine or of a recording, as rows.

Touches: the operator's second port (a tap holds up no call), the recording and the directory that are named.
Data goes to standard output, the count at the end to standard error. Records that were lost on the way are
counted and said; with any lost the exit code is 6.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from bus import wire
from bus.envelope import PeerError
from bus.tap import Gaps, Record, unpack_record
from spine.errors import Exit, SpineError
from spine.ground import port as ports
from spine.ground.attach import attach
from spine.ground.container import Container
from spine.tap import pcapng
from spine.tap.export import Exporter, ExportError
from spine.tap.view import Reader, Row


def run(args: argparse.Namespace) -> int:
    """Show."""
    if args.replay is not None and args.record is not None:
        raise SpineError(
            "a replay is not recorded again", "both were asked for", "./spine tap --replay FILE", 2
        )
    with ExitStack() as stack:
        records: Iterable[Record]
        if args.replay is not None:
            table, records = _recording(args.replay, stack)
        else:
            table, records = _live(args, stack)
        exporter = None if args.export is None else _exporter(args.export, table)
        try:
            gaps, reader = _show(args, table, records, exporter)
        except KeyboardInterrupt:
            return Exit.INTERRUPTED
        except ExportError as error:
            raise _unexportable(args.export, str(error)) from error
    said = f"{gaps.lost} lost, {reader.calls} calls, {reader.one_sided} seen by one end only"
    sys.stderr.write(f"spine: {said}\n")
    if exporter is not None:
        skipped = f", {exporter.left_out} without a body left out" if exporter.left_out else ""
        sys.stderr.write(f"spine: {exporter.written} messages in {args.export}{skipped}\n")
        if exporter.example:
            sys.stderr.write(f"spine: next: {exporter.example}\n")
    return Exit.LOSS if gaps.lost else Exit.OK


def _show(
    args: argparse.Namespace, table: wire.Schemas, records: Iterable[Record], exporter: Exporter | None
) -> tuple[Gaps, Reader]:
    gaps, reader = Gaps(), Reader(table)
    shown = 0
    start_ns: int | None = None
    for record in records:
        missing = gaps.see(record)
        row = reader.read(record)
        start_ns = row.time_ns if start_ns is None else start_ns
        if missing:
            _print(args, {"lost": missing, "organ": record.organ}, f"{'':10}  {record.organ}: {missing} lost")
        if wanted(args, row):
            _print(args, row.document(), row.line(start_ns))
            if exporter is not None:
                exporter.add(record)
            shown += 1
            if args.count is not None and shown >= args.count:
                break
    return gaps, reader


def wanted(args: argparse.Namespace, row: Row) -> bool:
    """Whether the filters let a row through. Each given filter must, and one of its values is enough."""
    return (
        (not args.organ or bool({row.sender, row.receiver} & set(args.organ)))
        and (not args.method or row.method in args.method)
        and (not args.kind or row.kind in args.kind)
    )


def _print(args: argparse.Namespace, document: dict[str, object], line: str) -> None:
    sys.stdout.write((json.dumps(document) if args.json else line) + "\n")
    sys.stdout.flush()


def _recording(path: Path, stack: ExitStack) -> tuple[wire.Schemas, Iterator[Record]]:
    try:
        file = stack.enter_context(path.open("rb"))
        table = wire.parse(pcapng.read_schemas(file))
    except OSError as error:
        raise SpineError(
            "the recording cannot be read", f"{path}: {error.strerror}", "./spine tap --record FILE", 4
        ) from error
    except pcapng.RecordingError as error:
        raise _damaged(path, error) from error

    def records() -> Iterator[Record]:
        try:
            yield from pcapng.read_records(file)
        except pcapng.RecordingError as error:
            raise _damaged(path, error) from error

    return table, records()


def _damaged(path: Path, error: pcapng.RecordingError) -> SpineError:
    return SpineError(
        f"{path} is not a recording of the tap", str(error), "./spine tap --record FILE", Exit.FAILED
    )


def _exporter(directory: Path, table: wire.Schemas) -> Exporter:
    try:
        return Exporter(directory, table)
    except (OSError, ExportError) as error:
        raise _unexportable(directory, str(error)) from error


def _unexportable(directory: Path, why: str) -> SpineError:
    return SpineError(
        f"the messages cannot be exported to {directory}",
        why,
        "./spine tap --replay FILE --export A-NEW-DIRECTORY",
        Exit.FAILED,
    )


def _live(args: argparse.Namespace, stack: ExitStack) -> tuple[wire.Schemas, Iterator[Record]]:
    table = ports.schemas()
    ground = attach(args.ground)
    shared = isinstance(ground, Container)
    port = stack.enter_context(ports.Port(ground.tap_path, table=table, shared=shared))
    writer = None
    if args.record is not None:
        try:
            file = stack.enter_context(args.record.open("wb"))
        except OSError as error:
            raise SpineError(
                "the recording cannot be written", f"{args.record}: {error.strerror}", "choose another file"
            ) from error
        writer = pcapng.Writer(file, ports.schemas_file().read_bytes())
    port.call("operator.tap")
    sys.stderr.write("spine: tapping\n")
    sys.stderr.flush()

    def records() -> Iterator[Record]:
        end = None if args.seconds is None else time.monotonic() + args.seconds
        while (body := port.event(end)) is not None:
            try:
                record = unpack_record(body)
            except PeerError as error:
                raise SpineError(
                    "the tap sent something else", str(error), "./spine build; ./spine reboot"
                ) from error
            if writer is not None:
                writer.add(record)
            yield record

    return table, records()
