import pytest

from lightning_xai.data.concept_listers import ConceptFile, LanguageModelConcepts, listed_concepts


@pytest.mark.parametrize(
    "text", ["office: [desk, ' lamp ', desk, 24]\nbar: []\n", '{"office": ["desk", "lamp", 24], "bar": []}']
)
def test_concepts_from_a_file(tmp_path, text):
    file = tmp_path / "concepts.yaml"
    file.write_text(text)
    lister = ConceptFile(str(file))
    assert lister.list("office", 10) == ["desk", "lamp", "24"] and lister.list("office", 2) == ["desk", "lamp"]
    for name in ("bar", "kitchen"):
        with pytest.raises(ValueError, match=f"no concepts of class '{name}'; there are those of office, bar"):
            lister.list(name, 1)


@pytest.mark.parametrize(
    "text, message", [("- a\n", "should map each class name"), ("a: b\n", "should map"), ("a: [", "not valid")]
)
def test_a_file_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        ConceptFile(str(tmp_path / "c.yaml"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        ConceptFile(str(tmp_path / "none.yaml"))


def test_an_answer_s_lines_become_concepts():
    answer = """ Wooden desk
2. **Office chair** - where people sit
3) computer screen: on the desk
- desk lamp (switched on)

5. Wooden desk
6. This is a much longer sentence that explains nothing
7. ring-binder"""
    assert listed_concepts(answer) == ["wooden desk", "office chair", "computer screen", "desk lamp", "ring-binder"]


def test_a_local_language_model_is_asked_without_sampling(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<s>", "</s>", "<unk>", "List", "of", "photo", "desk"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(tmp_path)
    config = transformers.GPT2Config(vocab_size=7, n_positions=64, n_embd=8, n_layer=1, n_head=1, eos_token_id=1)
    model = transformers.GPT2LMHeadModel(config)
    model.transformer.wte.weight.data.zero_()
    model.transformer.ln_f.bias.data.fill_(1.0)
    model.lm_head.weight.data[6] = 5.0  # whatever it is asked, it says desk
    model.save_pretrained(tmp_path)
    lister = LanguageModelConcepts(str(tmp_path), question="List {count} of photo {name}", max_new_tokens=3)
    assert lister.list("bed_room", 4) == ["desk desk desk"]
    fast.chat_template = "List {{ messages[0].content }} photo"
    fast.save_pretrained(tmp_path)
    chatting, asked = LanguageModelConcepts(str(tmp_path), question="of {count}", max_new_tokens=1), []
    assert chatting.list("bed_room", 4) == ["desk"]
    chatting._model.register_forward_pre_hook(
        lambda _, args, given: asked.append(given["input_ids"].tolist()), with_kwargs=True
    )
    chatting.list("bed_room", 4)
    assert asked == [[[vocabulary[word] for word in ("List", "of", "<unk>", "photo")]]]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        LanguageModelConcepts(str(tmp_path / "none"))
