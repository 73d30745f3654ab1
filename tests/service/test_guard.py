"""What clients may not do: wrong keys, other sites, path tricks, huge and slow requests, floods; and OpenAPI kept."""

import asyncio
import json
import socket
import time
from contextlib import suppress

import httpx
import pytest

from tests.service.fake import BIG, video_of
from tests.service.harness import Server, until

ANN, BOB = "the-key-that-ann-has", "the-key-that-bob-has"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("service") / "s") as made:
        yield made


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("keyed") / "s", keys=f"ann:{ANN},bob:{BOB}") as made:
        yield made


def shape(answer) -> dict:
    """The error of an answer, which has the one shape."""
    found = answer.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param", "code"}
    return found["error"]


def test_without_a_key_only_health_answers(keyed):
    for method, path in (("GET", "/v1/videos"), ("POST", "/v1/videos"), ("GET", "/metrics"), ("GET", "/nope")):
        for header in ({}, {"Authorization": f"Bearer {ANN}x"}, {"Authorization": ANN}, {"Authorization": "Bearer é"}):
            sent = {name: value.encode() for name, value in header.items()}
            answer = keyed.client.request(method, path, headers=sent)
            assert (answer.status_code, shape(answer)["type"]) == (401, "authentication_error")
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/ready", "/tt-liveness", "/openapi.json"):
        assert keyed.client.get(path).status_code == 200
    assert ANN not in keyed.log.read_text()


def test_keys_see_their_own_jobs_only(keyed):
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in (ANN, BOB))
    name = keyed.client.post("/v1/videos", json={"prompt": "x"}, headers=ann).json()["id"]
    for method, path in (
        ("GET", ""),
        ("GET", "/content"),
        ("GET", "/preview"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ):
        answer = keyed.client.request(method, f"/v1/videos/{name}{path}", headers=bob)
        assert (answer.status_code, shape(answer)["code"]) == (404, "not_found")
    assert keyed.client.get("/v1/videos", headers=bob).json()["data"] == []
    assert keyed.client.get("/v1/predictions", headers=bob).json()["results"] == []
    assert keyed.client.get("/v1/videos/jobs", headers=bob).json() == []
    assert keyed.client.get("/v1/videos", params={"after": name}, headers=bob).status_code == 404
    assert keyed.client.get(f"/v1/videos/{name}", headers=ann).status_code == 200


def test_pages_of_other_sites_cannot_use_a_service_without_keys(server):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = server.client.post("/v1/videos", data={"prompt": "x"}, headers=headers)
        assert (answer.status_code, shape(answer)["type"]) == (403, "permission_error")
    assert "access-control-allow-origin" not in server.client.get("/health").headers
    own = server.client.get("/v1/videos", headers={"Origin": server.url, "Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 200


def test_every_answer_has_the_security_headers(server):
    for path in ("/health", "/v1/videos", "/nope"):
        headers = server.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers
        assert len(headers["x-request-id"]) == 16


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/../../etc/passwd",
        "/v1/videos/..%2f..%2fetc%2fpasswd/content",
        "/v1/videos/%2e%2e/content",
        "/v1/videos/video_%00/content",
        "/v1/videos/" + "a" * 5000,
        "/v1/videos/video_" + "0" * 32 + "/content/..%2frecord.json",
        "/v1/videos/jobs.sqlite3/content",
        "//etc/passwd",
        "/v1/videos/%f0%28%8c%28/content",
    ],
)
def test_path_tricks_find_nothing(server, path):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status = int(answer.split()[1])
    assert status in (404, 422), answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"[]", 400),
        ("application/json", b'{"prompt": "x", "prompt": "y"}', 400),
        ("application/json", b'{"prompt": "x", "seed": NaN}', 400),
        ("application/json", b'{"prompt": "\\ud800"}', 400),
        ("application/json", b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/json", b'{"prompt": 3}', 422),
        ("application/json", b'{"prompt": ""}', 422),
        ("application/json", b'{"prompt": "x", "seed": true}', 422),
        ("application/json", b'{"prompt": "x", "seed": 1.5}', 422),
        ("application/json", b'{"prompt": "x", "lora": {"a": 1}}', 422),
        ("application/json", b'{"prompt": "x", "' + b"u" * 9000 + b'": 1}', 422),
        ("application/json", b"{}", 422),
        ("application/json", b'{"prompt": "' + b"x" * 8001 + b'"}', 422),
        ("application/json", b" " * ((1 << 20) + 1), 413),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nnothing", 400),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ny', 400),
        ("application/x-www-form-urlencoded", b"prompt=a&prompt=b", 422),
        ("text/plain", b"x", 415),
        ("", b"x", 415),
    ],
)
def test_bad_bodies_are_refused_in_one_shape(server, kind, body, status):
    answer = server.client.post("/v1/videos", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert len(shape(answer)["message"]) < 1000


def test_a_file_in_a_form_is_refused(server):
    answer = server.client.post("/v1/videos", data={"prompt": "x"}, files={"lora": ("a.png", b"x")})
    assert (answer.status_code, shape(answer)["param"]) == (422, "lora")


def test_a_huge_body_without_a_length_is_not_read_to_its_end(server):
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    try:
        kind = {"Content-Type": "application/json"}
        status = server.client.post("/v1/videos", content=endless(), headers=kind).status_code
    except httpx.HTTPError:  # the server closes while we still send
        status = 413
    assert status == 413
    assert sent < 64 << 20


def test_methods_and_queries_that_are_not_there(server):
    answer = server.client.put("/v1/videos")
    assert (answer.status_code, shape(answer)["code"]) == (405, "method_not_allowed")
    assert "allow" in answer.headers
    for path in ("/v1/videos?page=2", "/v1/videos?limit=0", "/v1/videos?limit=x", "/v1/videos?order=up"):
        assert shape(server.client.get(path))["type"] == "invalid_request_error"
    assert server.client.post("/v1/videos?x=1", json={"prompt": "x"}).status_code == 422
    assert server.client.get("/v1/videos", params={"after": "none"}).status_code == 404


def test_slow_clients_are_closed_and_hold_up_nobody(tmp_path):
    with Server(tmp_path / "s", "slow") as server:
        host, port = server.url.removeprefix("http://").split(":")
        name = server.create("big")["id"]
        server.wait(name)
        heads, bodies, readers = [], [], []
        for number in range(20):
            for kind in (heads, bodies, readers):
                kind.append(socket.create_connection((host, int(port)), timeout=20))
            heads[number].sendall(b"GET /health HTTP/1.1\r\nHost: 127")
            bodies[number].sendall(
                f"POST /v1/videos HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                "Content-Length: 900\r\n\r\n{".encode()
            )
            readers[number].sendall(f"GET /v1/videos/{name}/content HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert server.client.get("/health").status_code == 200
        assert server.wait(server.create("y")["id"])["status"] == "completed"
        for connection in heads:
            assert connection.recv(1000) == b""
        for connection in bodies:
            assert b" 408 " in connection.recv(1000)
        until(
            lambda: sum(line["event"] == "connection closed: too slow" for line in server.lines()) == 40, "all closed"
        )
        for connection in readers:
            got = 0
            with suppress(ConnectionResetError):
                while read := connection.recv(1 << 20):
                    got += len(read)
            assert got < BIG


def test_many_submissions_at_once_are_neither_lost_nor_doubled(server):
    """200 at once, while somebody looks at /health all the time."""

    async def flood() -> tuple[list[httpx.Response], list[float]]:
        limits = httpx.Limits(max_connections=None)
        delays, done = [], False
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:

            async def look() -> None:
                while not done:
                    start = time.perf_counter()
                    assert (await client.get("/health")).status_code == 200
                    delays.append(time.perf_counter() - start)
                    await asyncio.sleep(0.01)

            looking = asyncio.create_task(look())
            answers = await asyncio.gather(
                *(client.post("/v1/videos", json={"prompt": f"steps=1 number={number}"}) for number in range(200))
            )
            done = True
            await looking
        return answers, delays

    answers, delays = asyncio.run(flood())
    assert {answer.status_code for answer in answers} == {200}
    names = {answer.json()["id"] for answer in answers}
    assert len(names) == 200
    prompts = {answer.json()["prompt"] for answer in answers}
    assert len(prompts) == 200
    assert delays
    print(f"/health: {1000 * max(delays):.0f} ms at most, {1000 * sorted(delays)[len(delays) // 2]:.0f} ms median")
    listed, after = [], None
    while True:
        page = server.client.get("/v1/videos", params={"limit": 100} | ({"after": after} if after else {})).json()
        listed += [video["id"] for video in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert len(listed) == len(set(listed))
    assert names <= set(listed)
    for name in names:
        assert server.wait(name)["status"] == "completed"
    made = [words[1] for words in server.journal() if words[0] == "made" and words[1] in names]
    assert len(made) == 200
    some = sorted(names)[0]
    assert server.client.get(f"/v1/videos/{some}/content").content == video_of(some)


def test_the_queue_and_the_quotas_are_bounded(tmp_path):
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[key]]\nname = "ann"\nkey = "{ANN}"\nqueued = 2\n[[key]]\nname = "bob"\nkey = "{BOB}"\n')
    with Server(tmp_path / "s", "small", keys=f"@{keys}") as server:

        def post(key):
            return server.client.post(
                "/v1/videos", json={"prompt": "steps=900 pause=0.05"}, headers={"Authorization": f"Bearer {key}"}
            )

        assert [post(ANN).status_code for _ in range(2)] == [200, 200]
        refused = post(ANN)
        assert (refused.status_code, shape(refused)["code"]) == (429, "quota_queued")
        assert int(refused.headers["retry-after"]) >= 1
        assert post(BOB).status_code == 200
        refused = post(BOB)
        assert (refused.status_code, shape(refused)["code"]) == (429, "queue_full")


def test_schemathesis_finds_no_fault_and_no_unknown_field_that_is_taken(server):
    """Every operation, with data that keeps the schema and data that breaks it."""
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    tried: dict[str, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ("/ready",):
            continue

        def check(case) -> None:
            answer = case.call()
            kind = f"{case.operation.method} {case.operation.path} {answer.status_code // 100}xx"
            tried[kind] = tried.get(kind, 0) + 1
            case.validate_response(
                answer,
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                    negative_data_rejection,
                ],
            )

        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                cases = operation.as_strategy(generation_mode=mode)
            except (ValueError, schemathesis.errors.InvalidSchema):
                continue  # nothing of it can be broken
            limits = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            try:
                limits(given(case=cases)(check))()
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, operation.path
    print(tried)
    assert sum(tried.values()) > 200
    for path in ("/v1/videos", "/v1/videos/generations", "/v1/predictions"):
        assert tried[f"post {path} 2xx"]
        assert tried[f"post {path} 4xx"]


def test_answers_are_json_in_ascii(server):
    name = server.create("ein Ball \u00fc \U0001f600")["id"]
    answer = server.client.get(f"/v1/videos/{name}")
    assert answer.content.isascii()
    assert json.loads(answer.content)["prompt"] == "ein Ball \u00fc \U0001f600"


def test_no_operation_takes_an_unknown_field_or_parameter(server):
    """Every operation of OpenAPI, with a request that is right but for one name."""
    bodies = {"VideoCreate": {"prompt": "x"}, "PredictionCreate": {"input": {"prompt": "x"}}}
    job = server.create("x")["id"]
    server.wait(job)
    tried = 0
    for path, operations in server.client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            if path in ("/health", "/ready", "/tt-liveness", "/metrics"):
                continue
            url, tried = path.replace("{video_id}", job), tried + 1
            content = operation.get("requestBody", {}).get("content", {})
            body = {}
            if content and "application/json" not in content:
                form = {"data": {"surprise": "1"}, "files": {"file": b"x"}}
                answer = server.client.request(method, url, **form)
                assert (answer.status_code, shape(answer)["param"]) == (422, "surprise"), url
                content = {}
            elif content:
                body = bodies[content["application/json"]["schema"]["$ref"].rpartition("/")[2]]
                for wrong in [{**body, "surprise": 1}] + (
                    [{"input": {"prompt": "x", "surprise": 1}}] if "input" in body else []
                ):
                    answer = server.client.request(method, url, json=wrong)
                    assert (answer.status_code, shape(answer)["param"]) == (422, "surprise"), url
            answer = server.client.request(method, url, params={"surprise": 1}, **({"json": body} if content else {}))
            assert (answer.status_code, shape(answer)["code"]) == (422, "unknown_field"), url
    assert tried > 15


def test_queries_that_are_there_twice_are_refused(server):
    for path in ("/v1/videos?limit=2&limit=3", "/v1/videos?order=asc&order=asc", "/v1/videos?after=a&after=b"):
        answer = server.client.get(path)
        assert (answer.status_code, shape(answer)["code"]) == (422, "invalid_value"), path


def raw(server, *lines: bytes) -> bytes:
    """Send lines of a request as they are, and return the answer."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
        return b"".join(iter(lambda: connection.recv(65536), b""))


NONSENSE = [
    b"[",
    b"http://[::1",
    b"http://[",
    b"\xe9",
    b"\xff" * 40,
    b"x" * 3000,
    b"bytes=-0",
    b"bytes=9-2,x",
    b'"',
    b"=;,",
]


@pytest.mark.parametrize("keys", [False, True])
def test_no_header_is_a_fault_of_the_service(request, keys):
    one = request.getfixturevalue("keyed" if keys else "server")
    key = b"Authorization: Bearer " + ANN.encode()
    name = one.client.post("/v1/videos", json={"prompt": "x"}, headers={"Authorization": f"Bearer {ANN}"}).json()["id"]
    headers = (
        "Host Origin Range If-None-Match If-Range Prefer Idempotency-Key Cookie Authorization Content-Type "
        "Content-Length X-Forwarded-For Sec-Fetch-Site Accept"
    )
    for path in (b"/v1/videos", f"/v1/predictions/{name}".encode(), f"/v1/videos/{name}/content".encode()):
        for header in headers.encode().split():
            for value in NONSENSE:
                own = [] if header == b"Host" else [b"Host: 127.0.0.1"]
                known = [] if header == b"Authorization" else [key]
                answer = raw(one, b"GET " + path + b" HTTP/1.1", *own, *known, header + b": " + value)
                status = int(answer.split()[1])
                assert 200 <= status < 500, (path, header, value, answer)


def test_a_client_that_goes_away_is_no_fault_of_the_service(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        time.sleep(0.2)
    until(lambda: [line for line in server.lines() if line.get("status") == 499], "the request is logged")
    assert not [line for line in server.lines() if line["level"] == "error" and line["event"] == "fault of the service"]
