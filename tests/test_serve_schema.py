"""The server against its own OpenAPI description, with requests that schemathesis generates."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Loaded here because Python 3.11 can fail to parse a module while the server's thread parses another.
from schemathesis.specs.openapi.schemas import OpenApiSchema  # noqa: F401

from serving import make_picture, run_server

PICTURES = st.sampled_from([make_picture(1), make_picture(2, form="JPEG"), make_picture(3, (1, 1))])
for kind in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(kind, PICTURES)


@pytest.fixture(scope="module")
def operations():
    with run_server() as server:
        schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
        yield [result.ok() for result in schema.get_all_operations()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_described(operations, mode):
    """Valid and invalid requests to every route."""
    assert len(operations) >= 12
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body):
            continue  # there is nothing that could be invalid: any text is the name of a model

        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            # JSON Schema cannot say what a picture in base64 is, nor how long a tensor's data are, so bodies that are
            # valid by it may be refused. Every other check holds.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()
