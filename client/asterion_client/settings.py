"""``site.toml``: what a site is. Frozen, validated; the coordinator can change none of it."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from asterion_client.consent_settings import ConsentSettings, Hours
from asterion_shared.algorithm_settings import Label
from asterion_shared.carrier import Carrier
from asterion_shared.console.settings import ConsoleSettings
from asterion_shared.evaluation_settings import Attribute
from asterion_shared.plan import Name, TaskName
from asterion_shared.settings_files import Positive, Rule, Settings, read_toml, rule, validate

SMALLEST_GROUP = 5
"""Fewest patients where the site sets no other number and its data are of people."""

Fraction = Annotated[float, Field(ge=0, le=1)]


class SiteDataSettings(Settings):
    """Where the site's data lie and how they are read."""

    format: Literal["nifti", "dicom", "fits", "npz", "table"]
    folder: str = "."
    """Folder of the data, relative to ``site.toml``."""

    manifest: str | None = None
    """A CSV, relative to ``folder``, with columns path, label, group, split. Absent: images in
    ``images/`` with masks of the same name in ``labels/``, or one folder a class."""

    labels: dict[Label, Label] = Field(default_factory=dict)
    """The site's own label names or numbers to the plan's class names: ``"2" = "posterior"``."""

    columns: dict[Label, Label] = Field(default_factory=dict)
    """The site's own column or channel names to the plan's."""

    subgroup_keys: dict[Attribute, Label] = Field(default_factory=dict)
    """Where the attributes of a plan's ``evaluation.subgroups`` stand in DICOM or FITS files: a
    DICOM keyword or a FITS header key, such as ``scanner = "Manufacturer"``. Others are columns of
    that name, of the manifest or the table."""

    subgroup_values: dict[Label, Label] = Field(default_factory=dict)
    """The site's own words for them to the plan's: ``"ge medical systems" = "ge"``; upper and
    lower case are the same."""

    label_column: Label = "label"
    """Tables: the column that holds the class."""

    group_column: Label | None = None
    """Tables: the column that holds the patient."""

    consent_column: Label = "consent"
    """Manifests and tables: the column with the consents or protocols of a record, several of them
    separated by ``;``. Looked at when ``consent.protocols`` names some."""

    image_hdu: Label = "SCI"
    """FITS: name of the image extension; the first image is used when there is none."""

    mask_hdu: Label = "SEG"
    """FITS: name of the mask extension; any value above 0 is class 1 unless ``labels`` says."""

    weight_hdu: Label | None = None
    """FITS: name of a weight or data-quality plane; pixels it marks bad are excluded (set NaN)."""

    test_fraction: Fraction = 0.25
    """Share of patients (or, for a single field, of the sky) held out when no split is given."""

    max_bad_fraction: Fraction = 0.1
    """Share of files that may be unreadable before the site refuses the order."""

    memory_bytes: Annotated[int, Field(ge=0)] = 4 * 2**30
    """Memory for cases that have been read; others are read again."""


class ConnectionSettings(Settings):
    """How the coordinator is reached. Outbound only."""

    address: str
    """``host:port`` of the coordinator."""

    root_certificate: str
    """PEM file of the authority behind its certificate, relative to ``site.toml``."""

    private_key: str
    """The site's own private key (mode 0600), relative to ``site.toml``; it never leaves."""

    certificate: str | None = None
    """PEM file of the site's own certificate, relative to ``site.toml``; the link needs it."""

    carrier: Carrier = "link"
    """What carries the messages: Asterion's own link, or stock Flower. It must be the
    coordinator's."""

    proxy: str | None = None
    """``http://host:port`` of an HTTP proxy on the way (CONNECT); absent: as the environment's
    ``https_proxy`` says. The link only."""

    most_bytes_per_second: Annotated[int, Field(ge=10_000)] | None = None
    """Fastest that the site moves chunks, both ways together; absent: no cap. The link only."""

    hours: Hours = ()
    """When chunks may move, local time, such as ``["19:00-07:00"]``; empty: at any time. The link
    only."""

    silent_minutes: Annotated[float, Field(gt=0, le=10_080)] = 10.0
    """After so long without a handshake the site calls itself disconnected: in its status, at its
    health address and, when asked, by its exit code."""

    health_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port where ``/health`` says how the site stands and ``/metrics`` says it in figures, for
    Prometheus; absent: none. The link only."""

    health_address: str = "127.0.0.1"
    """Address that this port is opened on: this machine alone, unless you write another."""

    peers: str | None = None
    """Folder with the public key of every site, ``NAME.pem``, relative to ``site.toml``; needed
    for secure sums. Compare the keys with the other sites on a way that is not the
    coordinator's: whoever can put a key into it can pose as that site."""

    message_seconds: Annotated[float, Field(ge=10, le=86_400)] = 600.0
    """How long the site waits for the rest of a message that has begun to arrive. It never comes
    when a run is stopped in that moment; a slow line needs time for a large model."""


class ComputeSettings(Settings):
    """What the site computes with."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of torch; part of what makes a run repeatable."""


class PrivacySettings(Settings):
    """What the site allows to be lost. It holds over all runs and coordinators together."""

    epsilon_limit: Positive = 8.0
    """Most epsilon that any one record, patient or the site itself may lose, ever. A release that
    would pass it does not leave. 1 and below is strong, 8 is usual in the field, above 10 says
    little."""

    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Chance that the bound does not hold; keep it well below one over the number of patients."""

    coordinator_may_read: bool = True
    """Whether an update may leave that the coordinator can read: of a plan without privacy and
    without a secure sum, or with the noise at the centre. false: such a run is refused."""


class EgressSettings(Settings):
    """What may leave beyond the table of fields that all sites share."""

    smallest_group: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Fewest patients that any number which leaves may stand on; counted per patient, never per
    row. Absent: 5, and for 'fits' 1, because a patch of sky is no person. 1 switches it off."""


class SiteConsoleSettings(ConsoleSettings):
    """Where the pages of the site are served, and what they show besides its state."""

    predictions: str | None = None
    """Folder with the folders that ``asterion site predict --out`` wrote, relative to this file;
    absent: no page shows predictions."""


class SiteSettings(Settings):
    """What a site is: its name, its data, how it connects and computes."""

    name: Name
    task: TaskName
    """What the data are labelled for; orders for another task are refused."""

    data: SiteDataSettings
    connection: ConnectionSettings | None = None
    """Absent in a simulation."""

    compute: ComputeSettings = ComputeSettings()
    privacy: PrivacySettings | None = None
    """Section with epsilon_limit and delta: the site's budget over all runs. Without it the site
    takes part in no run that is private: no release can be charged."""

    consent: ConsentSettings | None = None
    """What the site agrees to. Without it every order is refused."""

    egress: EgressSettings = EgressSettings()

    console: SiteConsoleSettings | None = None
    """Pages for people at the site: plans, budget, what left, health; absent: none. Over the link
    ``asterion site start`` serves them, else ``asterion site console``."""

    state_folder: str = "state"
    """Where the site keeps what must outlive a restart, relative to ``site.toml``."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: s.data.format != "table" or s.task == "classification",
            lambda s: (
                f"data.format is 'table' and task is {s.task!r}; tables are for classification"
            ),
        ),
        rule(
            lambda s: s.consent is None or s.consent.embargo is None or s.data.format == "fits",
            lambda s: (
                f"consent.embargo is given and data.format is {s.data.format!r}; embargoes are "
                "read from FITS headers: remove it"
            ),
        ),
        rule(
            lambda s: not s.data.subgroup_keys or s.data.format in ("dicom", "fits"),
            lambda s: (
                f"data.subgroup_keys is given and data.format is {s.data.format!r}; only DICOM and "
                "FITS files have keys: give the attributes columns of their names"
            ),
        ),
        rule(
            # By two lists of values of one key the few that only one of them lists could be told.
            lambda s: len({*s.data.subgroup_keys.values()}) == len(s.data.subgroup_keys),
            lambda s: "data.subgroup_keys gives two attributes one key; give each its own",
        ),
    )

    @property
    def smallest_group(self) -> int:
        """Fewest patients behind a number that leaves: as set, or what suits the format."""
        if self.egress.smallest_group is not None:
            return self.egress.smallest_group
        return 1 if self.data.format == "fits" else SMALLEST_GROUP


def read_site_settings(path: Path) -> SiteSettings:
    """Read ``site.toml``; relative paths in it are meant from its own folder.

    Raises:
        FileProblemError: the file cannot be read or is not TOML.
        SettingsError: lists every problem.
    """
    return validate(SiteSettings, read_toml(path), str(path))
