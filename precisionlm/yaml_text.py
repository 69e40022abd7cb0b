"""YAML as experiments and sweeps are written in: numbers as everybody writes them, no key twice, no tricks.

A tree of texts, numbers, booleans, lists and mappings with words as keys. YAML 1.1's dates, sets, base 60 (1:30 is 90
there) and base 8 (010 is 8) are none of them, and anchors may not refer to themselves or multiply out of all bounds.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from precisionlm.errors import UserError

LONGEST = 1 << 20  # characters; what is written by hand has thousands
_MOST_NODES = 200_000  # values, each alias counted as what it stands for
_DEEPEST = 50  # mappings and lists in each other


class _Tree(yaml.SafeLoader):
    """YAML 1.1 without what no configuration has, but 1e-3 is a number, and a key given twice is an error."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"more than {_DEEPEST} mappings and lists in each other")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _at(key_node, "a key must be a word, not a list or a mapping")
            if key_node.value in seen:
                raise _at(key_node, f"key '{key_node.value}' is given twice")
            seen.add(key_node.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if not is_text(text):
            raise _at(node, "a text holds characters that no file can")
        return text

    def construct_refused(self, node: yaml.Node) -> Any:
        raise _at(node, f"the tag '{node.tag}' is not read here; leave it away")


def is_text(text: str) -> bool:
    """Whether a text can be written to files and be part of a path: no null character, nothing that UTF-8 has not."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _at(node: yaml.Node, what: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


_READ = ("null", "bool", "int", "float", "seq", "map")
_TAG = "tag:yaml.org,2002:"
_Tree.yaml_constructors = {_TAG + name: yaml.SafeLoader.yaml_constructors[_TAG + name] for name in _READ}
_Tree.add_constructor(_TAG + "str", _Tree.construct_text)
_Tree.add_constructor(None, _Tree.construct_refused)
_OURS = {
    "int": r"^[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$",
    "float": r"^[-+]?([0-9][0-9_]*\.?[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|\.(inf|nan))$",
}
_NOT_THEIRS = {_TAG + name for name in ("timestamp", *_OURS)}
_Tree.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _NOT_THEIRS]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _OURS.items():
    _Tree.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list("-+.0123456789"))


class _AsRead(yaml.SafeDumper):
    """Quotes a text that our reader would take for a number, such as the hash 3723808099e1."""


_AsRead.yaml_implicit_resolvers = _Tree.yaml_implicit_resolvers


def parse(text: str) -> Any:
    """What a YAML text means. Raises UserError that says what is wrong in one line."""
    if len(text) > LONGEST:
        raise UserError(f"longer than {LONGEST:,} characters")
    loader = None
    try:
        loader = _Tree(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"more than {_MOST_NODES:,} values, its aliases written out")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: 0x_, thousands of digits
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node (count), aliases counted as what they stand for. Raises YAMLError for one that holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if (found := known.get(id(node))) is not None:
        if not found:
            raise _at(node, "an anchor refers to itself")
        return found
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def dump(content: Any) -> str:
    """YAML that `parse` reads back, in the order given."""
    return yaml.dump(content, Dumper=_AsRead, sort_keys=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises UserError."""
    try:
        with Path(path).open() as file:
            text = file.read(LONGEST + 1)  # no more, of a device without an end
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, or a null character in the path
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        tree = parse(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping of sections, such as 'model: {{layers: 2, …}}'")
    return tree
