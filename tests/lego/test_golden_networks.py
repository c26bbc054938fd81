"""The networks of LEGO give the numbers of the official code, through the names of its checkpoints."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch

from core.optim import OptimConfig
from core.step import TrainStep
from projects.lego import model
from projects.lego.config import ModelConfig
from projects.lego.losses import criterion
from projects.lego.model import Condition, Schedule, layouts, names
from projects.lego.train import condition_dropout
from tests.lego import tiny
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden


def by_name(case: Case) -> str:
    return case.path.name


def stats(tensor: torch.Tensor) -> np.ndarray:
    values = tensor.double()
    return np.array([float(values.mean()), float(values.std()), float(values.abs().max())])


@pytest.mark.parametrize("case", cases("lego", "cond_modules*"), ids=by_name)
def test_conditioning(case: Case, parity: Parity) -> None:
    cfg = tiny.sized(case.json("keys.json"))
    conditioner = model.Conditioner(cfg.feature_width, cfg.context).eval()
    report = layouts.load_conditioner(conditioner, tiny.conditioning(case))
    assert len(report.loaded) == len(case.json("keys.json"))
    image, text = case.noise("in.llava_image", (2, 256, 5120)), case.noise("in.llava_text", (2, 77, 5120))
    text[0, 40:] = 0
    text[1, 77:] = 0
    with torch.no_grad():
        projected, words = conditioner.projection_img(image), conditioner.projection_txt(text)
        mixed = conditioner.self_attn_mix(words)
        whole = conditioner(Condition(torch.zeros(2, 77, cfg.context), image, text))
    expected = case.expected
    found = {
        "proj_img_head": projected[:, :8, :64],
        "proj_img_tail": projected[:, -4:, -64:],
        "proj_txt_head": words[:, :8, :64],
        "mix_head": mixed[:, :8, :64],
        "mix_pad": mixed[:, -4:, :64],
    }
    for name, value in found.items():
        parity.check(name, value, expected[name], atol=2e-5)
    for name, value in {"proj_img_stats": projected, "proj_txt_stats": words, "mix_stats": mixed}.items():
        if name in expected:
            parity.check(name, stats(value), np.asarray(expected[name]).reshape(-1), atol=5e-5)
    assert torch.equal(whole, torch.cat([torch.zeros(2, 77, cfg.context), projected, mixed], 1))


@pytest.mark.parametrize("case", cases("lego", "get_input*"), ids=by_name)
def test_conditions_of_a_training_batch(case: Case, parity: Parity) -> None:
    """Latents, the order of the tokens and all four regimes of the condition drop-out."""
    expected, cfg = case.expected, tiny.sized(case.json("keys.json"))
    size = len(expected["z"])
    weights = tiny.parts(case)
    vae = model.autoencoder(cfg)
    layouts.load_vae(vae, weights)
    conditioner = model.Conditioner(cfg.feature_width, cfg.context).eval()
    layouts.load_conditioner(conditioner, weights)
    source, target = ((0.5 * case.noise(f"in.image_{i}", (size, 3, 64, 64))).clamp(-1, 1) for i in (0, 1))
    moments = model.encode(vae, target)
    latents = 0.18215 * model.posterior_sample(moments, case.noise("in.posterior_noise", (size, 4, 8, 8)))
    with np.load(case.path / "inputs.npz") as file:
        chance = torch.from_numpy(np.asarray(file["random"])).float()
    drop_text, keep_source = condition_dropout(chance, 0.05)
    first = model.encode(vae, source)[:, :4] * keep_source[:, None, None, None]
    condition = Condition(
        torch.cat([tiny.states(f"action {i}") for i in range(size)]),
        case.noise("in.llava_image", (size, 256, 5120)),
        case.noise("in.llava_text", (size, 77, 5120)),
    )
    with torch.no_grad():
        context = conditioner(condition, drop_text, tiny.states(""))
    assert context.shape == (size, 410, 768)
    parity.check("z", latents, expected["z"], atol=5e-5)
    parity.check("c_concat", first, expected["c_concat"], atol=5e-5)
    parity.check("ctx_head", context[:, [0, 1, 76, 77, 78, 332, 333, 334, 409], :32], expected["ctx_head"], atol=2e-5)
    segments = [context[:, :77], context[:, 77:333], context[:, 333:]]
    found = [[s for part in segments for s in stats(part[i])] for i in range(size)]
    parity.check("ctx_stats", np.array(found), expected["ctx_stats"].reshape(size, -1), atol=2e-4)


@pytest.mark.parametrize("case", cases("lego", "unet_*"), ids=by_name)
def test_unet(case: Case, parity: Parity) -> None:
    """The whole network, 860 million parameters: one copy of the weights, made tensor by tensor."""
    lego = tiny.filled_unet(case, tiny.sized(case.json("keys.json"), features="none"))
    assert sum(p.numel() for p in lego.unet.parameters()) > 0
    expected = case.expected["out"]
    size = len(expected)
    noisy, source = case.noise("in.x", (size, 8, *expected.shape[2:])).chunk(2, 1)
    with torch.no_grad():
        out = lego(noisy, torch.tensor([17.0, 642.5]), source, case.noise("in.context", (size, 410, 768)))
    parity.check("out", out, expected, atol=5e-5)
    del lego
    gc.collect()


@pytest.mark.parametrize("case", cases("lego", "vae_*"), ids=by_name)
def test_autoencoder(case: Case, parity: Parity) -> None:
    vae = model.autoencoder(tiny.sized(case.json("keys.json")))
    report = layouts.load_vae(vae, tiny.parts(case))
    assert len(report.loaded) == len(case.json("keys.json"))
    assert len(report.reshaped) == 8
    image = (0.5 * case.noise("in.image", (1, 3, 64, 64))).clamp(-1, 1)
    mean, logvar = model.encode(vae, image).chunk(2, 1)
    decoded = model.decode(vae, case.noise("in.latent", (1, 4, 8, 8)))
    expected = case.expected
    parity.check("mean", mean, expected["mean"], atol=1e-4)
    parity.check("logvar", logvar, expected["logvar"], atol=1e-4)
    parity.check("decoded", decoded[:, :, ::2, ::2], expected["decoded"], atol=1e-4)
    parity.check("decoded_stats", stats(decoded), expected["decoded_stats"].reshape(-1), atol=1e-4)


@pytest.mark.parametrize("case", cases("lego", "clip_text*"), ids=by_name)
def test_text_encoder(case: Case, parity: Parity) -> None:
    encoder = model.text_encoder(ModelConfig())
    layouts.load_text(encoder, tiny.parts(case))
    with np.load(case.path / "inputs.npz") as file:
        states = encoder(torch.from_numpy(file["input_ids"]).long())
    expected = case.expected
    parity.check("head", states[:, :8, :96], expected["head"], atol=5e-5)
    parity.check("tail", states[:, -4:, :96], expected["tail"], atol=5e-5)
    parity.check("stats", np.stack([stats(row) for row in states]), expected["stats"], atol=5e-5)


@pytest.mark.parametrize("case", cases("lego", "checkpoint_layout*"), ids=by_name)
def test_names_and_shapes_of_the_official_checkpoint(case: Case) -> None:
    """Both directions of the key tables and every entry that we would write, at the official size without memory."""
    shapes, mapping = case.json("keys.json"), case.json("mapping.json")
    cfg = tiny.sized(shapes)
    lego, vae, text = (tiny.unfilled(cfg, kind) for kind in ("lego", "vae", "text"))
    assert names.table(lego.unet.state_dict(), names.compvis_unet) == mapping["unet"]
    assert names.table(vae.state_dict(), names.compvis_vae) == mapping["vae"]
    state = layouts.official_state(lego, average=lego, vae=vae, text=text, schedule=Schedule())
    written = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()}
    assert written == shapes


@pytest.mark.parametrize("case", cases("lego", "noise_schedule*"), ids=by_name)
def test_noise_schedule(case: Case, parity: Parity) -> None:
    schedule = Schedule()
    for name, expected in case.expected.items():
        kind, _, count = name.rpartition("_")
        if kind == "sigmas":
            parity.check(name, schedule.sigmas(int(count)), expected, rtol=1e-5)
        elif kind == "t":
            parity.check(name, schedule.time(schedule.sigmas(int(count))[:-1]), expected, rtol=1e-5, atol=1e-5)
        else:
            parity.check(name, getattr(schedule, name), expected, rtol=1e-6)


@pytest.mark.parametrize("case", cases("lego", "ema*"), ids=by_name)
def test_moving_average(case: Case, parity: Parity) -> None:
    """The average that training keeps, fed with the case's steps: one update for each, by the official warm-up."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    expected = case.expected

    def noise(name: str, like: torch.Tensor) -> torch.Tensor:
        scale = np.prod(like.shape[1:]) ** 0.5 if like.ndim > 1 else 50
        from tests.support import fill

        return torch.from_numpy(fill.array(name, tuple(like.shape)) * np.float32(scale))

    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(noise("ema.init." + name.replace(".", "_"), parameter))
            parity.check(f"init_{name}", parameter, expected[f"init_{name}"], atol=1e-6)
    cfg = OptimConfig(name="sgd", lr=0.0, momentum=0.0, ema=0.9999, ema_per="batch", schedule="constant")
    step = TrainStep(net, cfg, batches_per_epoch=100)
    for update in range(1, 13):
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.add_(0.1 * noise(f"ema.step{update}." + name.replace(".", "_"), parameter))
        with step.forward() as forward:
            step.backward(forward(torch.zeros(1, 3)).sum())
        if f"ema_{update}_0.weight" in expected:
            for name, value in step.average.named_parameters():
                parity.check(f"ema_{update}_{name}", value, expected[f"ema_{update}_{name}"], atol=1e-6)
    parity.check("final", torch.cat([p.flatten() for p in net.parameters()]), expected["final"], atol=1e-6)


@pytest.mark.parametrize("case", cases("lego", "train_step*"), ids=by_name)
def test_three_steps_of_training(case: Case, parity: Parity) -> None:
    """Loss, gradients, AdamW over the UNet alone, frozen conditioning, moving average."""
    expected, watched = case.expected, case.json("watch.json")
    cfg = tiny.sized(case.json("keys.json"), dropout=0.0)
    lego = tiny.filled_unet(case, cfg).train()
    names_of = names.table(lego.unet.state_dict(), names.compvis_unet)

    def own(name: str) -> torch.Tensor:
        inside = name.removeprefix("model.diffusion_model.")
        return lego.unet.get_parameter(names_of[inside]) if inside in names_of else lego.conditioner.get_parameter(name)

    start = {name: own(name).detach().clone() for name in watched}
    from projects.lego.config import Config
    from projects.lego.train import decay_everywhere, freeze

    freeze(lego, train_conditioner=False)
    optim = Config().optim.model_copy(update={"accumulate": 1})
    step = TrainStep(lego, optim, batches_per_epoch=3, precision="fp32", rules=decay_everywhere(optim.weight_decay))
    schedule, losses = Schedule(), []
    for number, times in enumerate([[10, 500], [999, 0], [250, 730]]):
        latents, source, noise = (case.noise(f"s{number}.{name}", (2, 4, 8, 8)) for name in ("z", "src", "noise"))
        condition = Condition(
            case.noise(f"s{number}.txt", (2, 77, 768)),
            case.noise(f"s{number}.llava_image", (2, 256, 5120)),
            case.noise(f"s{number}.llava_text", (2, 77, 5120)),
        )
        timesteps = torch.tensor(times)
        noisy = schedule.add_noise(latents, noise, timesteps)
        if number == 0:  # the case also has the gradients of what no optimizer holds
            twin = copy.deepcopy(lego).requires_grad_(True)
            criterion(twin(noisy, timesteps, source, condition), noise, timesteps, schedule)["total"].backward()
            grads = dict(twin.unet.named_parameters()) | dict(twin.conditioner.named_parameters())
            places = [names_of.get(name.removeprefix("model.diffusion_model."), name) for name in watched]
            found = [float(grads[place].grad.norm()) for place in places]
            parity.check("grad_norms", np.array(found), expected["grad_norms"], rtol=1e-4)
            del twin, grads
        with step.forward() as forward:
            terms = criterion(forward(noisy, timesteps, source, condition), noise, timesteps, schedule)
        step.backward(terms["total"])
        losses.append([float(terms[name]) for name in ("total", "simple", "vlb")])
    parity.check("losses_0", np.array(losses[0]), expected["losses"][0], rtol=1e-5)
    parity.check("losses", np.array(losses), expected["losses"], rtol=1e-3)
    delta = [float((own(name) - start[name]).norm()) for name in watched]
    parity.check("delta", np.array(delta), expected["delta"], rtol=1e-3)
    assert [value for name, value in zip(watched, delta, strict=True) if "diffusion_model" not in name] == [0, 0]
    parity.check("out_bias", lego.unet.conv_out.bias, expected["out_bias"], atol=1e-6, rtol=1e-3)
    parity.check("ema_out_bias", step.average.unet.conv_out.bias, expected["ema_out_bias"], atol=1e-6, rtol=1e-3)
    assert step.averaged == int(expected["num_updates"])
