"""Text that outgrows one machine: a writer for datatrove pipelines (local, Slurm and Ray executors; extra `datatrove`).

    from datatrove.executor import LocalPipelineExecutor  # or SlurmPipelineExecutor, RayPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader

    shards = LocalPipelineExecutor(
        [JsonlReader("s3://bucket/text"), TokenShards("s3://bucket/tokens", "tokenizer.json")], tasks=1000, workers=64
    )
    index = LocalPipelineExecutor([ShardIndex("s3://bucket/tokens", "tokenizer.json", tasks=1000)], depends=shards)
    index.run()

Every task writes shards of its own, and a list of them when it is through; the index joins the lists, in the order of
the tasks, into the meta.json of a prepared folder. So the tokens depend on the number of tasks, but not on when or
where they ran.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from precisionlm.data.documents import Document
from precisionlm.data.encode import Coder, Item
from precisionlm.data.meta import META_FILE, SPLIT_FILES, TOKENIZER_FILE, Meta, Shard, Split, shard_of, token_dtype
from precisionlm.data.tokenizer import end_of_text_id, load_tokenizer, neutralise, vocabulary_size
from precisionlm.data.writer import SHARD_TOKENS, SplitWriter
from precisionlm.errors import UserError

try:
    from datatrove.io import DataFolderLike, get_datafolder
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ImportError("the writer for datatrove needs it: pip install 'precisionlm[datatrove]'") from error

_PIECE = 1 << 23  # bytes read at once


class TokenShards(PipelineStep):
    """Encodes documents and writes them as shards, held-out ones apart: one in `validation_every` by hash of its
    content, as `data prepare` does. Shards are written to a temporary folder of the machine and then sent. UserError:
    a tokenizer that does not give text back."""

    name = "🔢 Token shards"
    type = "🔢 - TOKENIZER"

    def __init__(
        self,
        output_folder: "DataFolderLike",
        tokenizer: str,
        eos_id: int | None = None,
        validation_every: int = 128,
        shard_tokens: int = SHARD_TOKENS,
    ):
        super().__init__()
        self.output_folder = get_datafolder(output_folder)
        self.tokenizer, self.eos_id = str(tokenizer), eos_id
        self.validation_every, self.shard_tokens = validation_every, shard_tokens

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Writes the shards of one task, then the list of them."""
        tokenizer = load_tokenizer(Path(self.tokenizer))
        neutralise(tokenizer)
        eos, size = end_of_text_id(tokenizer, self.eos_id), vocabulary_size(tokenizer)
        coder = Coder(tokenizer, check=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            writers = {
                split: SplitWriter(folder, split, token_dtype(size), eos, self.shard_tokens, (0, 0))
                for split in SPLIT_FILES
            }
            for encoded in coder.encode(self._items(data)):
                if coder.loss.changed:
                    raise UserError(f"{self.tokenizer} does not give text back ({coder.loss.example})")
                writer = writers[encoded.item.fate]
                writer.append(encoded.ids)
                if encoded.last:
                    writer.end()
            listed = {split: self._send(folder, split, writer.finish(), rank) for split, writer in writers.items()}
        with self.output_folder.open(_list_name(rank), "wt") as file:
            json.dump({"tasks": world_size, **listed}, file)

    def _items(self, data: Any) -> Iterator[Item]:
        for number, record in enumerate(data):
            document = Document(record.text.encode(errors="replace").decode(), 0)
            self.stat_update("empty" if document.is_empty else "documents")
            if not document.is_empty:
                fate = "validation" if document.in_validation(self.validation_every) else "train"
                yield Item(fate, document, "train", 0, number, 0)

    def _send(self, folder: Path, split: str, written: Split, rank: int) -> list[dict[str, Any]]:
        """Copies a split's files to the output folder, under names of this task: its shards."""
        own = Shard(SPLIT_FILES[split], written.tokens, written.documents, written.sha256)
        sent = []
        for n, shard in enumerate(written.shards or ((own,) if written.tokens else ())):
            name = f"{split}-{rank:05}-{n:05}.bin"
            with open(folder / shard.file, "rb") as source, self.output_folder.open(name, "wb") as target:
                shutil.copyfileobj(source, target, _PIECE)
            sent.append(asdict(shard) | {"file": name})
            self.stat_update("tokens", value=shard.tokens)
        return sent


class ShardIndex(PipelineStep):
    """Joins what `tasks` tasks have written into a prepared folder: tokenizer.json and, last, meta.json. Reads every
    token once, for the hash of the whole, by which runs know their data. UserError: a task that is not through, a shard
    that is not what its task wrote."""

    name = "🗂 Shard index"
    type = "🗂 - INDEX"

    def __init__(
        self,
        output_folder: "DataFolderLike",
        tokenizer: str,
        tasks: int,
        eos_id: int | None = None,
        validation_every: int = 128,
        source: str = "datatrove",
    ):
        super().__init__()
        self.output_folder = get_datafolder(output_folder)
        self.tokenizer, self.eos_id, self.tasks = str(tokenizer), eos_id, tasks
        self.validation_every, self.source = validation_every, source

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """By the first task alone."""
        if rank:
            return
        tokenizer = load_tokenizer(Path(self.tokenizer))
        content = tokenizer.to_str().encode() if neutralise(tokenizer) else Path(self.tokenizer).read_bytes()
        size = vocabulary_size(tokenizer)
        lists = [self._list(task) for task in range(self.tasks)]
        splits = {split: self._joined([shard for of in lists for shard in of[split]]) for split in SPLIT_FILES}
        meta = Meta(
            dtype=token_dtype(size),
            vocab_size=size,
            eos_id=end_of_text_id(tokenizer, self.eos_id),
            tokenizer_sha256=hashlib.sha256(content).hexdigest(),
            train=splits["train"],
            validation=splits["validation"],
            split_rule=f"a document is held out if blake2b-64(its UTF-8 text) mod {self.validation_every} == 0",
            source=self.source,
            arguments={"tasks": self.tasks, "validation_every": self.validation_every},
        )
        for name, text in ((TOKENIZER_FILE, content), (META_FILE, meta.text().encode())):
            with self.output_folder.open(name, "wb") as file:
                file.write(text)

    def _list(self, task: int) -> dict[str, list[Shard]]:
        if not self.output_folder.exists(_list_name(task)):
            raise UserError(
                f"{self.output_folder.path}: task {task} of {self.tasks} is not through ({_list_name(task)})"
            )
        with self.output_folder.open(_list_name(task), "rt") as file:
            found: dict[str, Any] = json.load(file)
        if found["tasks"] != self.tasks:
            raise UserError(f"{self.output_folder.path}: its shards were written by {found['tasks']} tasks")
        where = f"{self.output_folder.path}/{_list_name(task)}"
        return {split: [shard_of(shard, where) for shard in found[split]] for split in SPLIT_FILES}

    def _joined(self, shards: list[Shard]) -> Split:
        whole = hashlib.sha256()
        for shard in shards:
            own = hashlib.sha256()
            with self.output_folder.open(shard.file, "rb") as file:
                while data := file.read(_PIECE):
                    whole.update(data)
                    own.update(data)
            if own.hexdigest() != shard.sha256:
                raise UserError(f"{self.output_folder.path}/{shard.file} is not what its task wrote (sha256)")
        tokens, documents = sum(shard.tokens for shard in shards), sum(shard.documents for shard in shards)
        return Split(tokens, documents, whole.hexdigest(), tuple(shards))


def _list_name(task: int) -> str:
    return f"task-{task:05}.json"
