import pytest

from vmm_msi.domxml.diff import unified
from vmm_msi.domxml.document import read_document
from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.prerequisites import Check, problems
from vmm_msi.domxml.template import DirectBoot, nested_guest
from vmm_msi.errors import DomainXmlError
from vmm_msi.libvirt_driver import connect
from vmm_msi.types import Ipa, MemoryRange, PciAddress
from vmm_msi.types.guest import FIRST_GIOVA


def test_facts(read):
    domain = read("busy")
    assert (domain.name, domain.type, domain.arch) == ("busy", "kvm", "aarch64")
    assert (domain.machine, domain.gic_version, domain.iommufd) == ("virt-10.2", "3", None)
    assert domain.acpi
    assert domain.firmware
    assert domain.memory == 2 << 30
    pxb = next(c for c in domain.controllers() if c.index == 2)
    assert (pxb.model, pxb.bus_nr, pxb.node) == ("pcie-expander-bus", 18, None)
    (hostdev,) = domain.hostdevs()
    assert (str(hostdev.host), str(hostdev.guest)) == ("0000:41:00.0", "0000:04:00.0")
    assert hostdev.managed


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ("<memory>4</memory>", 4096),
        ("<memory unit='b'>4096</memory>", 4096),
        ("<memory unit='KB'>2</memory>", 2000),
        ("<memory unit='M'>1</memory>", 1 << 20),
        ("<memory unit='gib'> 3 </memory>", 3 << 30),
        ("<cpu><numa><cell memory='4'/><cell memory='1' unit='MiB'/></numa></cpu>", 0x101000),
        ("<memory>0</memory><cpu><numa><cell memory='4'/></numa></cpu>", 4096),
        ("<memory>8</memory><cpu><numa><cell memory='4'/></numa></cpu>", 8192),
    ],
)
def test_memory(memory, size):
    domain = DomainXml.parse(f"<domain><name>g</name>{memory}<devices/></domain>", "here")
    assert domain.memory == size


NUMBERS = """<domain type='test'><name>g</name><memory unit='MiB'>{0}</memory><vcpu>9</vcpu><os>
<type arch='aarch64' machine='virt'>hvm</type></os><cpu><numa><cell id='0' cpus='0-7'
memory='1' unit='GiB'/>{cells}</numa></cpu><devices><controller type='pci' index='0'
model='pcie-root'/><controller type='pci' index='{0}' model='pcie-expander-bus'><target busNr='{1}'>
<node>{0}</node></target></controller><hostdev mode='subsystem' type='pci'><source><address
domain='{1}' bus='{1}' slot='{1}' function='1'/></source></hostdev></devices></domain>"""


@pytest.mark.parametrize("decimal", ["8", "08", "010", "+8"])
@pytest.mark.parametrize("other", ["16", "020", "0x10", "+16", " 16"])
def test_numbers_are_read_as_libvirt_reads_them(decimal, other):
    cells = "".join(f"<cell id='{number}' memory='1' unit='GiB'/>" for number in range(1, 11))
    ours = DomainXml.parse(NUMBERS.format(decimal, other, cells=cells), "here")
    with connect("test:///default") as connection:
        theirs = connection.define(ours, validate=False)
    facts = [
        (domain.controllers()[-1].node, domain.controllers()[-1].bus_nr, domain.hostdevs()[0].host)
        for domain in (ours, theirs)
    ]
    assert facts[0] == facts[1]
    assert ours.controllers()[-1].index == theirs.controllers()[-1].index
    plain = f"<domain type='test'><name>g</name><memory>{decimal}</memory></domain>"
    assert DomainXml.parse(plain, "here").memory == int(decimal) * 1024


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<network/>", "the root element is <network>"),
        ("<domain/>", "no <name>"),
        ("<domain><name>g</name></domain>", "no <memory>"),
        ("<domain><name>g</name><memory unit='W'>1</memory></domain>", "unit is 'W'"),
        ("<domain><name>g</name><memory>-1</memory></domain>", "its text is '-1'"),
        ("<domain><name>g</name><memory>1_0</memory></domain>", "its text is '1_0'"),
    ],
)
def test_unreadable(text, words):
    with pytest.raises(DomainXmlError) as caught:
        guest_from_xml_checked(text)
    assert words in str(caught.value)


def guest_from_xml_checked(text):
    domain = DomainXml.parse(text, "here")
    assert domain.memory
    return guest_from_xml(domain)


def test_a_guest_without_devices():
    domain = DomainXml.parse("<domain><name>g</name><memory>1</memory></domain>", "here")
    assert (domain.controllers(), domain.iommus(), domain.hostdevs()) == ((), (), ())
    assert guest_from_xml(domain).devices == ()
    with pytest.raises(DomainXmlError, match="it has no <devices>"):
        _ = domain.devices


@pytest.mark.parametrize("name", ["busy", "plain"])
def test_paths_are_those_of_libxml2(read, name):
    domain = read(name)
    tree = domain.root.getroottree()
    for element in domain.root.iter("*"):
        assert domain.path(element) == f"{domain.source}: {tree.getpath(element)}"


def test_unreadable_files(tmp_path):
    path = tmp_path / "guest.xml"
    with pytest.raises(DomainXmlError, match=r"guest\.xml': No such file"):
        read_document(str(path))
    path.write_text("<domain><name>g</name></domain>", encoding="utf-8")
    assert read_document(str(path)).name == "g"
    path.write_bytes(b" " * 10_000_000)
    with pytest.raises(DomainXmlError, match="too many bytes"):
        read_document(str(path))


def test_unmet_prerequisites():
    assert problems(nested_guest("g", memory=1 << 30)) == ()
    domain = DomainXml.parse("<domain type='qemu'><name>g</name><devices/></domain>", "here")
    assert [problem.check for problem in problems(domain)] == [*Check]
    assert all(";" in str(problem) for problem in problems(domain))


def test_guest(read):
    also = PciAddress.parse("0001:01:00.0")
    guest = guest_from_xml(read("busy"), [also])
    assert [str(device.host) for device in guest.devices] == ["0000:41:00.0", str(also)]
    assert [stage1.id for stage1 in guest.stage1] == ["s1-0000:41:00.0", f"s1-{also}"]
    assert guest.gdb(guest.devices[0]) == Ipa(0x8090000)
    assert {device.giova for device in guest.devices} == {FIRST_GIOVA}
    assert guest.memory == (MemoryRange(Ipa(0x40000000), 2 << 30),)
    assert guest.honours_rmr


def test_diff(read):
    text = str(read("plain"))
    assert unified(text, text.replace("'", '"'), "plain") == ""
    shown = unified(text, text.replace("destroy", "restart"), "plain").splitlines()
    assert shown[:2] == ["--- plain (before)", "+++ plain (after)"]
    assert [line for line in shown[2:] if line.startswith("-")] == [
        "-  <on_poweroff>destroy</on_poweroff>",
        "-  <on_crash>destroy</on_crash>",
    ]


def test_template():
    boot = DirectBoot("/boot/Image", "/boot/initrd", "console=ttyAMA0 <&>")
    domain = nested_guest("l2", memory=512 << 20, vcpus=2, kind="qemu", boot=boot)
    assert domain.memory == 512 << 20
    assert domain.root.findtext("vcpu") == "2"
    assert domain.root.find("cpu").get("mode") == "maximum"
    assert [domain.root.findtext(f"os/{tag}") for tag in ("kernel", "initrd", "cmdline")] == [
        "/boot/Image",
        "/boot/initrd",
        "console=ttyAMA0 <&>",
    ]
    assert DomainXml.parse(str(domain), "again").name == "l2"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("g", {"kind": "xen"}),
        ("g", {"memory": 1000}),
        ("g", {"vcpus": 0}),
        ("\0", {}),
    ],
)
def test_a_template_refuses_invalid_values(name, options):
    with pytest.raises(DomainXmlError, match=r"valid|use printable text|use memory in whole KiB"):
        nested_guest(name, **{"memory": 1 << 30, **options})
