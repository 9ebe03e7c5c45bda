"""The tables of the link's queue as they are now, and which revision of them that is."""

import sqlalchemy as sql

REVISION = "1"
"""The newest in :mod:`asterion_server.link_revisions`, which make these tables."""

REVISION_TABLE = "link_revision"
"""Where Alembic keeps a database's revision."""

META = sql.MetaData()
VERSION = sql.Table("link_version", META, sql.Column("version", sql.Integer, nullable=False))
ORDER = sql.Table(
    "link_order",
    META,
    sql.Column("key", sql.String(64), primary_key=True),
    sql.Column("site", sql.String(63), nullable=False),
    sql.Column("run", sql.String(63), nullable=False),
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("message_type", sql.String(40), nullable=False),
    sql.Column("content", sql.LargeBinary, nullable=False),
    sql.Column("state", sql.String(10), nullable=False),
    sql.Column("attempt", sql.Integer, nullable=False),
    sql.Column("submission", sql.BigInteger, nullable=False),
    sql.Column("expires", sql.Float),
    sql.Index("link_order_by_site", "site", "state"),
    sql.Index("link_order_by_run", "run", "round"),
)
REPORT = sql.Table(
    "link_report",
    META,
    sql.Column("key", sql.String(64), sql.ForeignKey("link_order.key"), primary_key=True),
    sql.Column("content", sql.LargeBinary, nullable=False),
)
SESSION = sql.Table(
    "link_session",
    META,
    sql.Column("site", sql.String(63), primary_key=True),
    sql.Column("state_id", sql.String(64), nullable=False),
    sql.Column("instance_id", sql.String(64), nullable=False),
    sql.Column("version", sql.String(40), nullable=False),
    sql.Column("is_open", sql.Boolean, nullable=False),
    sql.Column("opened", sql.Float, nullable=False),
    sql.Column("last_contact", sql.Float, nullable=False),
)
