"""Methods as they are written on a command line."""

import pytest

from lightning_xai.cli.method_option import methods_of_options
from lightning_xai.explain.explain_batch import methods_by_name
from lightning_xai.explain.generic_relevance import GenericRelevance


def test_names_and_options():
    words = ["rollout", "raw_attention:layer=mean", "generic_relevance:start_layer=1,normalise=no"]
    found = methods_of_options(words)
    assert list(found) == words
    assert found[words[0]] == {"method": "rollout"}
    assert found[words[1]] == {"method": "raw_attention", "layer": "mean"}
    assert methods_by_name(found)[words[2]] == GenericRelevance(start_layer=1, normalise=False)


@pytest.mark.parametrize("word", ["rollout:start_layer", "rollout:=1", "rollout:start_layer=1,,normalise=no"])
def test_what_is_no_option(word):
    with pytest.raises(ValueError, match="is no option=value, such as rollout:start_layer=1"):
        methods_of_options([word])
