"""The tables as version 0.1.0 made them, before there were revisions."""

import sqlalchemy as sql
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make them; a database that has them is not brought here."""
    version = op.create_table("link_version", sql.Column("version", sql.Integer, nullable=False))
    op.bulk_insert(version, [{"version": 1}])
    op.create_table(
        "link_order",
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
    )
    op.create_index("link_order_by_site", "link_order", ["site", "state"])
    op.create_index("link_order_by_run", "link_order", ["run", "round"])
    op.create_table(
        "link_report",
        sql.Column("key", sql.String(64), sql.ForeignKey("link_order.key"), primary_key=True),
        sql.Column("content", sql.LargeBinary, nullable=False),
    )
    op.create_table(
        "link_session",
        sql.Column("site", sql.String(63), primary_key=True),
        sql.Column("state_id", sql.String(64), nullable=False),
        sql.Column("instance_id", sql.String(64), nullable=False),
        sql.Column("version", sql.String(40), nullable=False),
        sql.Column("is_open", sql.Boolean, nullable=False),
        sql.Column("opened", sql.Float, nullable=False),
        sql.Column("last_contact", sql.Float, nullable=False),
    )
