"""Whose a file store is. A gateway removes there what its Redis does not know, and so another service's jobs."""

from interlace_state.config_file import ConfigError
from interlace_state.files import Files

#: The file in the store that says it: the `redis.prefix` of its gateways.
NAME = "service"


async def claim(files: Files, prefix: str) -> None:
    """Take a store that is nobody's. Raises ConfigError where it is another service's, OSError."""
    try:
        owner = (await files.get(NAME)).decode()
    except FileNotFoundError:
        await files.put(NAME, prefix.encode())
        return
    if owner != prefix:
        raise ConfigError(
            f"the store is that of the service with `redis.prefix` {owner!r}, and ours is {prefix!r}: each would "
            f"remove the other's jobs. Give each a `store.url` of its own; where that service is no more, remove the "
            f"store's file `{NAME}`."
        )
