"""Every command and snippet of the pages is executed, but for those on methods, see `snippets`."""

import re

import pytest

import snippets

PAGES = [page for page in snippets.PAGES if "methods" not in page.parts]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    snippets.make_images(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=snippets.called)
def test_what_a_page_says_can_be_done(page, made, tmp_path):
    snippets.execute(page, made, tmp_path)


OTHERS = {"--nproc-per-node", "--nnodes", "--rdzv-endpoint", "--requeue", "--signal", "--array", "--no-dev", "--extra"}
"""Options of torchrun, Slurm and uv."""


@pytest.mark.parametrize("page", snippets.PAGES, ids=snippets.called)
def test_verbs_and_options_that_are_named_between_words_exist(page):
    known = snippets.options() | OTHERS
    verbs = {word.split()[0] for word in snippets.cli.VERBS} | {"study"}
    scripts = "".join(script.read_text(encoding="utf-8") for script in (snippets.ROOT / "benchmarks").glob("*.py"))
    wrong = []
    for line, code in snippets.spans(page):
        named = re.match(r"unmask ([a-z]\w*)", code)
        if named is not None and named[1] not in verbs:
            wrong.append(f"{snippets.called(page)}:{line}: there is no verb {named[1]!r}")
        named = re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", code)
        strange = [option for option in named if option not in known and f'"{option}"' not in scripts]
        wrong += [f"{snippets.called(page)}:{line}: there is no option {option}" for option in strange]
    assert not wrong, "\n".join(wrong)
