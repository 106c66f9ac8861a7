import pytest

from lightning_xai.data.token_learners import ClassNameToken, EmbeddingFolder


def test_the_class_s_own_name():
    assert ClassNameToken().learn("living_room", [], "living room") == "living room"


@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".pt"])
def test_embeddings_that_were_learned_elsewhere(tmp_path, ending):
    (tmp_path / f"star{ending}").touch()
    learner = EmbeddingFolder(str(tmp_path))
    assert learner.learn("star", [], "star") == "<star>"
    with pytest.raises(FileNotFoundError, match=r"heart\.safetensors: no such file"):
        learner.learn("heart", [], "heart")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        EmbeddingFolder(str(tmp_path / "none"))
