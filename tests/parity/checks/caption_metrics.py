"""Metrics of captions: how right they are, and how different from each other."""

import warnings

import numpy as np
import torch
from reference_arrays import tolerate_stated

from checks import check
from lightning_xai.evaluate.caption_diversity import distinct_ngrams, mutual_bleu, self_cider, self_cider_kernel
from lightning_xai.evaluate.caption_metrics import caption_scores, mean_length, vocabulary_size
from lightning_xai.evaluate.cider import NgramRarity
from lightning_xai.evaluate.java_metrics import JavaMetricMissing
from lightning_xai.evaluate.ptb_words import ptb_words


def array(numbers) -> torch.Tensor:
    return torch.tensor(np.asarray(numbers, dtype=np.float64))


@check("sa3/caption_metrics")
def caption_metrics(case):
    tolerate_stated(case)
    captions = case.info["captions"]
    if len(captions) != int(case.inputs["n"]):
        case.failures.append(f"{len(captions)} images instead of {int(case.inputs['n'])}")
    predictions = {name: entry["prediction"] for name, entry in captions.items()}
    references = {name: entry["references"] for name, entry in captions.items()}
    scores = caption_scores(predictions, references)
    bleus = [f"BLEU-{n}" for n in range(1, 5)]
    case.compare("bleu", array([scores.corpus[title] for title in bleus]))
    case.compare("bleu_per_image", array([scores.each[title] for title in bleus]).T)
    for name, title in (("rouge_l", "ROUGE-L"), ("cider", "CIDEr")):
        case.compare(name, array(scores.corpus[title]))
        case.compare(f"{name}_per_image", array(scores.each[title]))
    case.compare("unique_words", torch.tensor(vocabulary_size(list(predictions.values()))))
    case.compare("avg_len", array(mean_length(list(predictions.values()))))
    raw, tokenized = (case.info["ptb_tokenizer"][name] for name in ("raw", "tokenized"))
    for name, sentences in raw.items():
        if (ours := [ptb_words(sentence) for sentence in sentences]) != tokenized[name]:
            case.failures.append(f"words of {name}: {ours} instead of {tokenized[name]}")
    try:
        with_java = caption_scores(predictions, references, ["meteor"])
    except JavaMetricMissing as missing:
        # the case says that only the Java program must give these
        warnings.warn(f"METEOR is not compared: {missing}", stacklevel=1)
        case.compared.update(("meteor", "meteor_per_image"))
    else:
        case.compare("meteor", array(with_java.corpus["METEOR"]))
        case.compare("meteor_per_image", array(with_java.each["METEOR"]))


@check("sa3/caption_diversity")
def caption_diversity(case):
    tolerate_stated(case)
    captions, rarity = case.info["captions"], NgramRarity(case.info["idf_corpus"])
    if [len(of_image) for of_image in captions] != [case.config["num"]] * int(case.inputs["n"]):
        case.failures.append("the numbers of images and captions are not as stated")
    kernels = [self_cider_kernel(of_image, rarity) for of_image in captions]
    case.compare("kernel", array(kernels))
    case.compare("self_cider", array([self_cider(kernel) for kernel in kernels]))
    case.compare("mbleu", array([mutual_bleu(of_image) for of_image in captions]))
    for n in (1, 2):
        case.compare(f"div{n}", array([distinct_ngrams(of_image, n) for of_image in captions]))
