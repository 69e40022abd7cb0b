"""Whether the tail of a pack goes on better in a narrower one: slots without a run compute too."""

_GAIN = 2.0  # times what another pack costs: fewer runs fill a device less, so that less is gained than slots


def slots_needed(live: int, chains: int, devices: int) -> int:
    """For runs under way and chains of runs that wait for each other's trunk, of which one more may be under way
    besides; a multiple of the devices."""
    return -(-(live + chains) // devices) * devices


def pays(slots: int, needed: int, steps: int, step_seconds: float, cost: float) -> bool:
    """Whether a pack of `needed` slots instead of `slots` saves more than it costs. steps: that the longest run still
    makes; step_seconds: of one now; cost: seconds to trace and compile another pack."""
    return needed <= slots // 2 and steps * step_seconds * (1 - needed / slots) > _GAIN * cost
