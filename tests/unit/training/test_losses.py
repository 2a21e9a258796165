import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from exemplar.errors import TrainingError
from exemplar.training.losses import contrast, distillation, listwise


def embeddings(num_queries, num_candidates, dim, seed=0):
    draw = torch.Generator().manual_seed(seed)
    query_BD = torch.randn(num_queries, dim, generator=draw, dtype=torch.float64)
    candidate_BND = torch.randn(
        num_queries, num_candidates, dim, generator=draw, dtype=torch.float64
    )
    reward_BN = torch.randn(num_queries, num_candidates, generator=draw, dtype=torch.float64)
    unit = torch.nn.functional.normalize
    return unit(query_BD, dim=-1), unit(candidate_BND, dim=-1), 3 * reward_BN


def plain_softmax(values):
    exps = [math.exp(value - max(values)) for value in values]
    return [each / sum(exps) for each in exps]


def plain_parts(query_BD, candidate_BND, reward_BN, temperature, all_pairs, drop=None):
    """KL and InfoNCE by loops over queries, each negative added by hand."""
    q, c, r = query_BD.numpy(), candidate_BND.numpy(), reward_BN.numpy()
    drop = drop or (lambda b, kind, i, n: False)
    kls, nces = [], []
    for b in range(len(q)):
        student = plain_softmax([float(q[b] @ vector) / temperature for vector in c[b]])
        teacher = plain_softmax([float(value) for value in r[b]])
        kls.append(
            sum(t * (math.log(t) - math.log(s)) for t, s in zip(teacher, student, strict=True))
        )
        positive = float(q[b] @ c[b, 0]) / temperature
        others = []
        for i in range(len(q)):
            for n in range(c.shape[1]):
                if (i, n) != (b, 0) and not drop(b, "candidate", i, n):
                    others.append(float(q[b] @ c[i, n]))
            if all_pairs and i != b:
                if not drop(b, "query", i, 0):
                    others += [float(c[b, 0] @ q[i]), float(q[b] @ q[i])]
                if not drop(b, "candidate", i, 0):
                    others.append(float(c[b, 0] @ c[i, 0]))
        logits = np.array([positive, *(value / temperature for value in others)])
        top = logits.max()
        nces.append(top + math.log(np.exp(logits - top).sum()) - positive)
    return float(np.mean(kls)), float(np.mean(nces))


@pytest.mark.parametrize("all_pairs", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_distillation_equals_the_sums_written_out(all_pairs, temperature):
    """A block left out or a diagonal left in trains at a plausible loss towards another goal."""
    tensors = embeddings(4, 3, 6)
    found = distillation(*tensors, temperature=temperature, all_pairs=all_pairs)
    kl, contrastive = plain_parts(*tensors, temperature, all_pairs)
    assert found.kl.item() == pytest.approx(kl, rel=1e-10)
    assert found.contrastive.item() == pytest.approx(contrastive, rel=1e-10)
    assert found.loss.item() == pytest.approx(kl + 0.2 * contrastive, rel=1e-10)


@pytest.mark.parametrize("all_pairs", [True, False])
def test_contrast_is_the_contrastive_part_alone_with_only_candidates_as_negatives(all_pairs):
    """EPR has neither a teacher's distribution nor queries among its negatives."""
    query_BD, candidate_BND, reward_BN = embeddings(4, 3, 6)
    _, expected = plain_parts(query_BD, candidate_BND, reward_BN, 0.1, all_pairs)
    found = contrast(query_BD, candidate_BND, temperature=0.1, all_pairs=all_pairs)
    assert found.loss.item() == pytest.approx(expected, rel=1e-10)
    if not all_pairs:
        assert contrast(query_BD, candidate_BND, temperature=0.1) == found
        with pytest.raises(ValueError, match="identically zero"):
            contrast(query_BD, candidate_BND[:, :1])
        with pytest.raises(TrainingError, match="NaN"):
            contrast(query_BD * float("nan"), candidate_BND)


def test_gradients_are_those_of_finite_differences():
    """A detached block would leave the value right and the gradient wrong."""
    query_BD, candidate_BND, reward_BN = embeddings(3, 3, 4)
    query_BD.requires_grad_(True)
    candidate_BND.requires_grad_(True)
    torch.autograd.gradcheck(
        lambda q, c: distillation(q, c, reward_BN, temperature=0.3).loss, (query_BD, candidate_BND)
    )


def test_classes_take_examples_of_the_same_label_out_of_the_negatives():
    """In a task with two labels half of all in-batch negatives would be right answers."""
    tensors = embeddings(4, 3, 6)
    query_class_B = torch.tensor([0, 1, 0, 2])
    candidate_class_BN = torch.tensor([[0, 1, 2], [1, 0, 2], [0, 2, 1], [2, 0, 1]])

    def drop(b, kind, i, n):
        of = candidate_class_BN[i, n] if kind == "candidate" else query_class_B[i]
        return bool(of == query_class_B[b])

    found = distillation(
        *tensors,
        temperature=0.5,
        query_class_B=query_class_B,
        candidate_class_BN=candidate_class_BN,
    )
    kl, contrastive = plain_parts(*tensors, 0.5, True, drop)
    assert found.contrastive.item() == pytest.approx(contrastive, rel=1e-10)
    assert found.kl.item() == pytest.approx(kl, rel=1e-10)


def test_a_softer_teacher_is_the_teacher_of_divided_rewards():
    """A temperature applied to the student instead would change what similarities mean."""
    query_BD, candidate_BND, reward_BN = embeddings(3, 4, 5)
    soft = distillation(query_BD, candidate_BND, reward_BN, teacher_temperature=4.0)
    divided = distillation(query_BD, candidate_BND, reward_BN / 4)
    assert soft.kl.item() == pytest.approx(divided.kl.item(), rel=1e-12)


def test_kl_is_zero_where_the_student_already_agrees():
    """A KL that does not vanish there would keep moving a finished student."""
    query_BD, candidate_BND, _ = embeddings(3, 4, 5)
    agreed_BN = torch.einsum("bd,bnd->bn", query_BD, candidate_BND) / 0.1 + 7
    found = distillation(query_BD, candidate_BND, agreed_BN, temperature=0.1)
    assert found.kl.item() == pytest.approx(0, abs=1e-12)


def test_losses_stay_finite_in_float32_at_the_papers_temperature():
    """At 0.01 a softmax underflows to exact zeros; a log taken of it afterwards gives NaN."""
    tensors = [tensor.float() for tensor in embeddings(8, 4, 16)]
    tensors[2] *= 100
    tensors[0].requires_grad_(True)
    loss = distillation(*tensors).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(tensors[0].grad).all()


def test_listwise_is_the_cross_entropy_of_column_zero():
    """With the positive elsewhere the reward model would learn to prefer what hurts."""
    score_BN = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 0.0]])
    expected = np.mean([-math.log(plain_softmax(row)[0]) for row in score_BN.tolist()])
    assert listwise(score_BN).item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    "shapes",
    [
        [(3, 4), (3, 2, 4), (3, 1)],
        [(3, 4), (3, 2, 5), (3, 2)],
        [(2, 4), (3, 2, 4), (3, 2)],
        [(3, 4), (6, 4), (3, 2)],
        [(0, 4), (0, 2, 4), (0, 2)],
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    """A narrow reward tensor broadcasts over the candidates and teaches a wrong ranking."""
    with pytest.raises(ValueError, match=r"expected queries \(B, D\)"):
        distillation(*(torch.zeros(shape) for shape in shapes))


def test_one_candidate_is_refused_by_both_losses():
    """A softmax over one candidate is constant: training would run and learn nothing."""
    with pytest.raises(ValueError, match="identically zero"):
        distillation(torch.ones(2, 3), torch.ones(2, 1, 3), torch.ones(2, 1))
    with pytest.raises(ValueError, match="identically zero"):
        listwise(torch.ones(2, 1))
    with pytest.raises(ValueError, match="shape"):
        listwise(torch.ones(2))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_refused_by_name(place):
    """One NaN in a batch would reach every weight at the next update."""
    tensors = list(embeddings(2, 3, 4))
    tensors[place] = tensors[place].clone()
    tensors[place].view(-1)[0] = float("nan")
    names = ["query embeddings", "candidate embeddings", "rewards"]
    with pytest.raises(TrainingError, match=names[place]):
        distillation(*tensors)
    with pytest.raises(TrainingError, match="scores"):
        listwise(torch.tensor([[float("nan"), 0.0]]))


@pytest.mark.parametrize("name", ["temperature", "teacher_temperature"])
def test_a_temperature_of_zero_is_refused(name):
    """Dividing by it gives infinities that surface as NaN much later."""
    with pytest.raises(ValueError, match=f"expected {name} > 0"):
        distillation(*embeddings(2, 3, 4), **{name: 0.0})


def test_classes_come_for_both_sides_or_neither():
    """Classes of one side alone would silently mask nothing."""
    with pytest.raises(ValueError, match="or neither"):
        distillation(*embeddings(2, 3, 4), query_class_B=torch.zeros(2))


def test_values_and_gradients_equal_the_papers_code():
    """Anything but the paper's loss would make its hyper-parameters meaningless."""
    folder = os.environ.get("EXEMPLAR_PARITY")
    if not folder:
        pytest.skip("EXEMPLAR_PARITY names no folder with reference.json")
    for case in json.loads((Path(folder) / "reference.json").read_text())["kd"]:
        query_BD = torch.tensor(case["query_embeddings"], dtype=torch.float64, requires_grad=True)
        candidate_KD = torch.tensor(
            case["candidate_embeddings"], dtype=torch.float64, requires_grad=True
        )
        found = distillation(
            query_BD,
            candidate_KD.view(case["batch"], case["group"], case["dim"]),
            torch.tensor(case["rewards"], dtype=torch.float64),
            temperature=case["temperature"],
            contrastive_weight=case["contrastive_weight"],
            all_pairs=case["all_pairs"],
        )
        found.loss.backward()
        for name, value in found._asdict().items():
            assert value.item() == pytest.approx(case[name], rel=1e-9, abs=1e-9)
        for name, tensor in (("query", query_BD), ("candidate", candidate_KD)):
            assert tensor.grad.norm().item() == pytest.approx(case[f"grad_{name}_norm"], rel=1e-9)
