"""What both ends of the link share: the wire, chunks on disk, identities, numbered steps.

``docs/protocol.md`` describes it.
"""
