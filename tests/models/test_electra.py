import pytest

from configs import electra
from llm_jax import config
from llm_jax.models.flops import count_params


@pytest.mark.parametrize(("variant", "millions"), [("small", 14), ("base", 110), ("large", 335)])
def test_the_discriminator_has_the_published_count(variant, millions):
    c = electra.get_config(variant)
    whole = count_params(config.resolve(c.model, 0))
    c.model.generator_fraction = 0.0
    count = count_params(config.resolve(c.model, 0))
    assert abs(count / 1e6 / millions - 1) < 0.04
    assert 1.01 < whole / count < 1.4  # the generator
