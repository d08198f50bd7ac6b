"""Every command and snippet of the pages on methods is executed, see `snippets`."""

import pytest

import snippets

PAGES = [page for page in snippets.PAGES if "methods" in page.parts]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    snippets.make_images(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=snippets.called)
def test_what_a_page_says_can_be_done(page, made, tmp_path):
    snippets.execute(page, made, tmp_path)
