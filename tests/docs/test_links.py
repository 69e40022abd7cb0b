"""What pages name is there: links, anchors, files, and every page in the site's navigation."""

import re

import pytest
import yaml

from .pages import IDS, PAGES, ROOT, anchors, links

_FILE = re.compile(r"(?<![\w./-])(?:docs|configs|launch|tests|precisionlm)/[\w./-]*\w")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: no file {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page.name}: no heading {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_named_files_exist(page):
    text = page.read_text()
    named = {word for word in _FILE.findall(text) if not re.search("[A-Z]{3}", word)}  # FILE.py is a placeholder
    absent = [word for word in sorted(named) if not (ROOT / word).exists()]
    assert not absent, f"{page.name} names {absent}"


def test_every_page_is_in_the_navigation():
    def files(node):
        if isinstance(node, str):
            return {node}
        return set().union(*map(files, node.values() if isinstance(node, dict) else node))

    site = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.SafeLoader)
    assert files(site["nav"]) == {page.name for page in PAGES[1:]}


def test_wrong_links_are_found():
    text = "# A `b` c\n\n[x](docs/absent.md#y) ![p](p.svg) [web](https://x.y)\n\n```sh\n# no [l](code)\n```\n"
    assert links(text) == ["docs/absent.md#y", "p.svg"]
    assert anchors(text) == {"a-b-c"}
