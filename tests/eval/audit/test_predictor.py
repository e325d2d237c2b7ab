"""eval.audit.predictor: the adapters against models run token by token, and the windows of scores."""

import numpy as np
import pytest
import torch

import eval.audit.predictor
from codec.model.config import ModelConfig
from eval.audit.audit import audit
from eval.audit.predictor import ENDED, FunctionPredictor, Predictor, TorchPredictor, context_start
from eval.score.windows import document_windows
from tests.support.audit_claims import assert_holds
from tests.support.helpers import random_weights
from trainer.data.sample import sp1024
from trainer.model.gpt import GPT

CONFIG = ModelConfig(vocab_size=64, window=8, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1)
TEXT = np.array([[1, 5, 9, 60, 2, 2, 7, 33, 12, 40, 41, 3, 8], [1, 6, 6, 6, 50, 11, 0, 1, 63, 2, 30, 31, 32]])


@pytest.fixture(scope="module")
def model():
    gpt = GPT(CONFIG)
    gpt.load_state_dict(random_weights(CONFIG))
    return gpt.eval()


def said(predictor, text, peek=False):
    """The distributions [T, B, V] along text [B, 1 + T]."""
    predictor.reset(text[:, 0])
    if peek:
        predictor.peek(list(text[:, 1:]))
    found = []
    for tokens in text[:, 1:].T:
        found.append(np.array(predictor.distribution()))
        predictor.update(tokens)
    return np.array(found)


@pytest.mark.parametrize(
    "length, window, stride", [(30, 8, 4), (30, 8, 1), (9, 8, 8), (8, 8, 3), (23, 5, 2), (1, 1, 1)]
)
def test_windows_are_those_of_scores(length, window, stride):
    starts = {i: w.start for w in document_windows(length, window, stride) for i in range(w.score_from, w.end)}
    assert [context_start(n + 1, window, stride) for n in range(length)] == [starts[n] for n in range(length)]


@pytest.mark.parametrize("stride", [1, 4, 8, None])
def test_torch_predicts_what_the_module_says_of_each_window(model, stride):
    found = said(TorchPredictor(model, window=8, stride=stride), TEXT)
    for w in document_windows(12, 8, stride or 4):
        with torch.inference_mode():
            expected = model(torch.from_numpy(TEXT[:, w.start : w.end])).double().softmax(-1).numpy()
        for i in range(w.score_from, w.end):
            assert np.allclose(found[i], expected[:, i - w.start], atol=1e-6)
    assert np.allclose(found.sum(-1), 1)


def test_peeking_at_a_causal_module_changes_nothing(model):
    predictor = TorchPredictor(model, window=8)
    assert np.allclose(said(predictor, TEXT, peek=True), said(predictor, TEXT), atol=1e-6)


def test_peeking_shows_a_module_that_looks_ahead():
    class Cheat(torch.nn.Module):
        def forward(self, ids):
            return 9.0 * torch.nn.functional.one_hot(ids.roll(-1, 1), 64)

    predictor = TorchPredictor(Cheat(), window=16)
    ahead, alone = said(predictor, TEXT, peek=True), said(predictor, TEXT)
    assert (ahead.argmax(-1)[:-1] == TEXT.T[1:-1]).all()
    assert not (alone.argmax(-1)[:-1] == TEXT.T[1:-1]).all()


def test_rows_of_unlike_length_peek(model):
    predictor = TorchPredictor(model, window=8)
    predictor.reset(np.array([1, 1]))
    predictor.peek([TEXT[0, 1:], TEXT[1, 1:4]])
    assert np.allclose(predictor.distribution(), said(predictor, TEXT)[0], atol=1e-6)


def test_a_function_sees_the_window_and_no_more():
    seen = []

    def function(ids):
        seen.append(ids.copy())
        return np.full((len(ids), 4), 0.25)

    predictor = FunctionPredictor(function, window=3)
    assert isinstance(predictor, Predictor)
    said(predictor, TEXT[:, :6])
    assert [ids.shape[1] for ids in seen] == [1, 2, 3, 3, 3]
    assert (seen[-1] == TEXT[:, 2:5]).all()


def test_a_document_that_has_ended_keeps_its_row():
    seen = []
    predictor = FunctionPredictor(lambda ids: seen.append(ids.copy()) or np.ones((len(ids), 4)) / 4)
    predictor.reset(np.array([1, 1]))
    predictor.update(np.array([3, 2]))
    predictor.update(np.array([ENDED, 0]))
    predictor.distribution()
    assert seen[-1].tolist() == [[1, 3, 3], [1, 2, 0]]


def test_the_example_in_the_documentation_is_a_claim_that_holds(tmp_path):
    """A stranger's way: the ten lines as they stand, and the shortest claim.toml."""
    text = eval.audit.predictor.__doc__ or ""
    code = text[text.index("    import numpy as np") : text.index("`underpar audit FOLDER`")]
    (tmp_path / "predictor.py").write_text("\n".join(line[4:] for line in code.splitlines()) + "\n")
    (tmp_path / "sp1024.model").write_bytes(sp1024().model)
    (tmp_path / "val.txt").write_bytes(b"A short text for a predictor that knows little.")
    (tmp_path / "claim.toml").write_text(
        'claimed_bpb = 5.0\npredictor = "predictor.py:make"\ntokenizer = "sp1024.model"\n[text]\npath = "val.txt"\n'
    )
    (tmp_path / "fresh.txt").write_bytes(b"Another text, which the predictor knows as little.")
    found = audit(tmp_path, fresh=tmp_path / "fresh.txt", margin=0.5)
    assert_holds(found)
    assert 4 < found.honest_bpb < 5
