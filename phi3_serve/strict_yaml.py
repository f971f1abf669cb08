"""YAML in which no key is given twice. PyYAML takes the last one without a word, although YAML forbids both."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice. A merge, ``<<: *defaults``, may be followed by keys that override it."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            # By its value: `yes` and `true` are one key.
            value = self.construct_object(key)
            if value in first:
                lines = f"line {first[value].start_mark.line + 1} and again in line {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"the key `{key.value}` is in {lines}")
            first[value] = key
        return node


def load(text: str) -> Any:
    """What ``text`` says: mappings, lists, strings, numbers, dates, true, false and null.

    Raises:
        yaml.YAMLError: ``text`` is not YAML, or a mapping has a key twice.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
