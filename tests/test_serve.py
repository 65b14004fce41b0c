"""The server over real sockets: answers, errors, and the protocol's own clients."""

import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from serving import make_picture, run_server
from shiftvit.inference.predict import Predictor


@pytest.fixture(scope="module")
def server():
    with run_server() as found:
        yield found


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained("cifar10", runtime="onnxruntime", threads=1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WebP", "BMP"])
def test_single_picture_gets_exactly_the_predictors_answer(server, predictor, form):
    content = make_picture(3, form=form)
    (expected,) = predictor([content], top_k=10)
    status, found = server.post("/v1/classify?top_k=10", content)
    assert status == 200
    assert [(row["label"], row["score"]) for row in found] == list(expected.top)


def test_omitted_parameters_have_their_defaults(server):
    content = make_picture(4)
    assert server.post("/v1/classify", content) == server.post("/v1/classify?top_k=5", content)
    assert server.post("/v1/classify", content) == server.post("/v1/models/cifar10/classify", content)
    _, (first, *_) = server.post("/v1/classify", content)
    assert server.post("/v1/explain", content) == server.post(f"/v1/explain?top_k=5&label={first['label']}", content)
    for refused in ("top_k=0", "top_k=x", "top_k="):
        status, message = server.post(f"/v1/classify?{refused}", content)
        assert (status, "top_k" in message["error"]) == (422, True)


def test_concurrent_clients_get_the_predictors_answers(server, predictor):
    pictures = [make_picture(seed) for seed in range(24)]
    answers = [None] * len(pictures)
    start = threading.Barrier(len(pictures))

    def ask(index):
        start.wait()
        answers[index] = server.post("/v1/models/cifar10/classify?top_k=10", pictures[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, (status, found) in zip(predictor(pictures, top_k=10), answers, strict=True):
        assert status == 200
        scores = {row["label"]: row["score"] for row in found}
        np.testing.assert_allclose([scores[name] for name, _ in expected.top], [p for _, p in expected.top], atol=1e-6)


def test_hugging_face_json_and_client(server, predictor):
    from huggingface_hub import InferenceClient

    content = make_picture(5)
    (expected,) = predictor([content], top_k=3)
    body = json.dumps({"inputs": base64.b64encode(content).decode(), "parameters": {"top_k": 3}})
    status, found = server.post("/v1/classify", body, {"Content-Type": "application/json; charset=utf-8"})
    assert status == 200
    assert [(row["label"], row["score"]) for row in found] == list(expected.top)
    for address in (server.url + "/v1/classify", server.url):
        answers = InferenceClient(model=address).image_classification(content, top_k=3)
        assert [(row.label, row.score) for row in answers] == list(expected.top)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_client(server, binary):
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    client = http.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cifar10")
    about = client.get_model_metadata("cifar10")
    assert about["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    entry = http.InferInput("images", pixels.shape, "UINT8")
    entry.set_data_from_numpy(pixels, binary_data=binary)
    wanted = http.InferRequestedOutput("probabilities", binary_data=binary)
    found = client.infer("cifar10", [entry], outputs=[wanted]).as_numpy("probabilities")
    np.testing.assert_array_equal(found, server.model.graph.run(pixels))
    assert client.is_model_ready("cifar10", "1")
    assert not client.is_model_ready("cifar10", "7")
    for call in (client.get_model_metadata, lambda *model: client.infer(*model[:1], [entry], model_version=model[1])):
        with pytest.raises(InferenceServerException, match="the model 'cifar10' has no version '7', only 1"):
            call("cifar10", "7")
    assert client.get_model_metadata("cifar10", "1") == about
    client.close()


def test_page_model_card_and_samples(server):
    status, headers, content = server.ask("GET", "/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert b"<title>" in content
    assert headers["Cache-Control"] == "no-cache"
    _, headers, _ = server.ask("GET", "/page/main.js")
    # Browsers run no module of another type, and must not mix modules of two versions.
    assert (headers["Content-Type"].partition(";")[0], headers["Cache-Control"]) == ("text/javascript", "no-cache")
    (model,) = json.loads(server.ask("GET", "/v1/models")[2])
    assert (model["name"], model["input_shape"], len(model["labels"])) == ("cifar10", [32, 32, 3], 10)
    assert model["max_bytes"] == server.limits.max_bytes
    status, headers, card = server.ask("GET", "/v1/models/cifar10/card")
    assert (status, headers["Content-Type"]) == (200, "text/markdown; charset=utf-8")
    assert b"# " in card
    samples = json.loads(server.ask("GET", "/v1/samples")[2])
    for sample in samples:
        assert server.post("/v1/classify?top_k=1", server.ask("GET", sample)[2])[0] == 200
    assert len(samples) >= 10


def test_prometheus_metrics(server):
    from prometheus_client.parser import text_string_to_metric_families

    def read_metrics():
        text = server.ask("GET", "/metrics")[2].decode()
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = read_metrics()
    for _ in range(3):
        assert server.post("/v1/classify", make_picture())[0] == 200
    assert server.post("/v1/classify", b"no image")[0] == 415
    after = read_metrics()

    def count_increase(*key):
        return after[key] - before.get(key, 0)

    assert count_increase("shiftvit_requests_total", "/v1/classify", "200", "POST") == 3
    assert count_increase("shiftvit_requests_total", "/v1/classify", "415", "POST") == 1
    assert count_increase("shiftvit_images_total", "cifar10") == 3
    assert count_increase("shiftvit_batch_images_sum", "cifar10") == 3
    assert count_increase("shiftvit_request_seconds_count", "/v1/classify") == 4
    assert after["shiftvit_queue_images", "cifar10"] == 0


@pytest.mark.parametrize("route", ["classify", "explain"])
def test_every_route_decodes_a_large_jpeg_alike(server, predictor, route):
    content = make_picture(8, (480, 640), "JPEG")
    (expected,) = predictor([content], top_k=10)
    status, found = server.post(f"/v1/{route}?top_k=10", content)
    assert status == 200
    rows = found if route == "classify" else found["classes"]
    assert [(row["label"], row["score"]) for row in rows] == list(expected.top)


def test_explanations(server, predictor):
    from shiftvit.inference.explainer import Explainer

    content = make_picture(7)
    (expected,) = predictor([content], top_k=3)
    status, found = server.post("/v1/explain?top_k=3", content)
    assert status == 200
    assert [(row["label"], row["score"]) for row in found["classes"]] == list(expected.top)
    assert found["label"] == expected.label
    other = expected.top[1][0]
    status, asked = server.post(f"/v1/models/cifar10/explain?label={other}", content)
    assert (status, asked["label"]) == (200, other)
    assert asked["heatmap"] != found["heatmap"]
    rule, (width, height) = predictor.metadata.preprocess, Image.open(io.BytesIO(content)).size
    resized, seen = rule.resized_shape(height, width), rule.output_shape(height, width)
    top, left = rule.crop_origin(*resized)
    region = [left / resized[1], top / resized[0], seen[1] / resized[1], seen[0] / resized[0]]
    assert found["region"] == pytest.approx(region)
    with Image.open(io.BytesIO(base64.b64decode(found["heatmap"]))) as layer:
        warmth = np.asarray(layer)[..., 3] / 255
    pixels = predictor.metadata.preprocess.pixels(np.asarray(Image.open(io.BytesIO(content)))[None])
    (heat,) = Explainer.from_pretrained("cifar10")(pixels)[1]
    rows = np.linspace(0, len(warmth) - 1, 2 * len(heat) + 1).astype(int)[1::2]
    np.testing.assert_allclose(warmth[np.ix_(rows, rows)], heat, atol=0.02)
    status, refused = server.post("/v1/explain?label=unicorn", content)
    assert status == 422
    assert "unicorn" in refused["error"]
