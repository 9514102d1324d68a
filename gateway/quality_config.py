"""The section `quality` of the configuration: how many answers are judged, and by what measure."""

from typing import Annotated

from pydantic import Field

from gateway.config_values import KIB, Ratio, Section, Size, Whole
from policy.quality import PASSES_AT_PERMILLE, SCORE_MAX_PERMILLE


class Quality(Section):
    """Which share of the answers is judged, how much of each is looked at, and the score from which it passes."""

    sample: Ratio = 0.01
    answer_characters_max: Annotated[Size, Field(ge=KIB)] = 64 * KIB
    passes_at_permille: Annotated[Whole, Field(ge=1, le=SCORE_MAX_PERMILLE)] = PASSES_AT_PERMILLE
