"""YAML as experiments and sweeps are written in: numbers as everybody writes them, no key twice."""

import re
from pathlib import Path
from typing import Any

import yaml

from precisionlm.errors import UserError


class _UniqueKeys(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number as everybody writes it, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key_node.value}' is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_FLOAT_TAG = "tag:yaml.org,2002:float"
_UniqueKeys.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag != _FLOAT_TAG]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_UniqueKeys.add_implicit_resolver(
    _FLOAT_TAG,
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\.(inf|nan))$"),
    list("-+.0123456789"),
)


class _AsRead(yaml.SafeDumper):
    """Quotes a text that our reader would take for a number, such as the hash 3723808099e1."""


_AsRead.yaml_implicit_resolvers = _UniqueKeys.yaml_implicit_resolvers


def parse(text: str) -> Any:
    """What a YAML text means. Raises yaml.YAMLError."""
    return yaml.load(text, _UniqueKeys)


def dump(content: Any) -> str:
    """YAML that `parse` reads back, in the order given."""
    return yaml.dump(content, Dumper=_AsRead, sort_keys=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises UserError."""
    try:
        tree = parse(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping of sections, such as 'model: {{layers: 2, …}}'")
    return tree
