# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the simulated vCenter through pyVmomi: server, logins and faults."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import typing as t
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest
from pyVim.connect import SmartConnect
from pyVmomi import vim, vmodl
from server import VCenter, VCenterError
from vim_client import Client, PropertyCollector, login

pytestmark = pytest.mark.timeout(120)

HERE = Path(__file__).resolve().parent
METHOD_FAULTS = [
    *("FilesystemQuiesceFault", "ApplicationQuiesceFault", "MemorySnapshotOnIndependentDisk", "TooManySnapshotLevels"),
    *("SnapshotLocked", "TaskInProgress", "InvalidName", "InvalidState", "InvalidPowerState", "NoDiskSpace", "FileLocked"),
    "ManagedObjectNotFound",
]


@pytest.fixture(scope="module")
def vcenter() -> Iterator[VCenter]:
    with VCenter() as started:
        yield started
        assert started.errors == ""


@pytest.fixture
def client(vcenter: VCenter) -> Iterator[Client]:
    with login(vcenter) as client:
        yield client
        vcenter.clear_faults()


@pytest.fixture
def vm(vcenter: VCenter, client: Client, request: pytest.FixtureRequest) -> t.Any:
    (made,) = vcenter.make_vms({"name": request.node.name, "folder": f"/DC0/vm/{time.monotonic_ns()}", "power": "poweredOn"})
    return client.by_id(made["moid"])


def connect(vcenter: VCenter, host: str, context: ssl.SSLContext) -> t.Any:
    return SmartConnect(host=host, port=vcenter.port, user=vcenter.username, pwd=vcenter.password, sslContext=context)


def wait_until(what: t.Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_certificate_verifies_with_its_own_ca(vcenter: VCenter, host: str) -> None:
    context = ssl.create_default_context(cafile=vcenter.ca_path)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    connect(vcenter, host, context).content.sessionManager.Logout()


def test_the_certificate_does_not_verify_without_it(vcenter: VCenter) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
        connect(vcenter, "127.0.0.1", ssl.create_default_context())


def test_a_certificate_may_be_for_another_host() -> None:
    with VCenter(vms=0, tls_names="vcenter.example.org") as other:
        context = ssl.create_default_context(cafile=other.ca_path)
        with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
            connect(other, "localhost", context)


def test_it_reports_the_version_that_was_asked_for() -> None:
    with VCenter(vms=0, api_version="7.0") as other, login(other) as client:
        assert client.content.about.apiVersion == "7.0"


def test_500_vms_are_there_within_seconds() -> None:
    begun = time.monotonic()
    with VCenter(vms=500) as large, login(large) as client:
        assert time.monotonic() - begun < 15
        view = client.content.viewManager.CreateContainerView(client.content.rootFolder, [vim.VirtualMachine], True)
        assert len(view.view) == 500


def test_nothing_is_left_when_its_owner_is_killed() -> None:
    program = "import server, time; v = server.VCenter().start(); print(v.pid, v.folder, flush=True); time.sleep(99)"
    owner = subprocess.Popen([sys.executable, "-c", program], cwd=HERE, stdout=subprocess.PIPE, text=True)
    pid, folder = owner.stdout.readline().split()
    assert Path(folder, "ca.pem").exists()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    wait_until(lambda: not Path(folder).exists() and not alive(int(pid)))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # a zombie has none


def test_stop_removes_the_folder_and_may_be_called_twice() -> None:
    with VCenter(vms=0) as short:
        pid = short.pid
    assert not short.folder.exists() and not alive(pid)
    short.stop()


def test_the_clock_may_differ_from_ours(vcenter: VCenter, client: Client) -> None:
    vcenter.set(clock_offset=86400)
    try:
        ahead = client.si.CurrentTime() - datetime.datetime.now(datetime.timezone.utc)
    finally:
        vcenter.set(clock_offset=0)
    assert 86390 < ahead.total_seconds() < 86410


def test_a_typo_in_the_control_is_an_error(vcenter: VCenter) -> None:
    with pytest.raises(VCenterError, match="tsak_time"):
        vcenter.set(tsak_time=1)
    with pytest.raises(VCenterError, match="NoSuchFault"):
        vcenter.fault("*", "NoSuchFault")
    with pytest.raises(VCenterError, match="0 VMs are called nobody"):
        vcenter.set_vm("nobody", data="x")


# -- logins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [{"password": "wrong"}, {"user": "nobody"}])
def test_a_wrong_password_or_user_is_invalid_login(vcenter: VCenter, who: dict[str, str]) -> None:
    with pytest.raises(vim.fault.InvalidLogin) as caught:
        Client(vcenter, **who)
    assert "incorrect user name or password" in caught.value.msg


def test_nothing_is_told_without_a_login(vcenter: VCenter) -> None:
    with login(vcenter) as client:
        client.content.sessionManager.Logout()
        with pytest.raises(vim.fault.NotAuthenticated) as caught:
            client.read(client.content.rootFolder, "name")
    assert caught.value.object is not None


def test_logins_end_with_logout(vcenter: VCenter) -> None:
    before = len(vcenter.logins())
    with login(vcenter, "readonly@vsphere.local"):
        assert vcenter.logins().count("readonly@vsphere.local") == 1
    assert len(vcenter.logins()) == before


def test_an_expired_session_is_not_authenticated_and_one_can_log_in_again(vcenter: VCenter, client: Client) -> None:
    vcenter.expire_sessions()
    with pytest.raises(vim.fault.NotAuthenticated):
        client.read(client.content.rootFolder, "name")
    client.content.sessionManager.Login(vcenter.username, vcenter.password)
    assert client.read(client.content.rootFolder, "name") == {"name": "Datacenters"}


def test_a_session_that_expires_ends_a_wait_at_once(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    spec = PropertyCollector.FilterSpec(
        objectSet=[PropertyCollector.ObjectSpec(obj=vm)],
        propSet=[PropertyCollector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    client.collector.CreateFilter(spec, partialUpdates=False)
    version, _ = client.updates("")
    begun = time.monotonic()
    threading.Timer(0.3, vcenter.expire_sessions).start()
    with pytest.raises(vim.fault.NotAuthenticated):
        client.updates(version, 30)
    assert 0.2 < time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("user", "may_create", "may_remove"), [("readonly", False, False), ("creator", True, False), ("operator", True, True)]
)
def test_users_have_different_rights(
    vcenter: VCenter, client: Client, vm: t.Any, user: str, may_create: bool, may_remove: bool
) -> None:
    snapshot = client.done(client.create(vm, "theirs"))
    with login(vcenter, f"{user}@vsphere.local") as other:
        seen = other.by_id(vm._moId)
        assert other.read(seen, "name")["name"] == client.read(vm, "name")["name"]
        privileges = ["VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot"]
        manager = other.content.authorizationManager
        (row,) = manager.HasPrivilegeOnEntities([seen], other.content.sessionManager.currentSession.key, privileges)
        assert [one.isGranted for one in row.privAvailability] == [may_create, may_remove]
        theirs = vim.vm.Snapshot(snapshot._moId, other.si._stub)
        for privilege, may, start in (
            (privileges[0], may_create, lambda: other.create(seen, "mine")),
            (privileges[1], may_remove, lambda: theirs.RemoveSnapshot_Task(removeChildren=False)),
        ):
            if may:
                other.done(start())
                continue
            with pytest.raises(vim.fault.NoPermission, match="Permission") as caught:
                start()
            assert (caught.value.object._moId, caught.value.privilegeId) == (vm._moId, privilege)
    assert ("mine" in client.tree(vm)) == may_create and ("theirs" in client.tree(vm)) == (not may_remove)


def test_a_mute_server_accepts_and_never_answers(vcenter: VCenter, client: Client) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.5)
    try:
        with vcenter.mute(), pytest.raises(TimeoutError):
            Client(vcenter)
        with login(vcenter) as known, vcenter.mute(), pytest.raises(TimeoutError):
            known.read(known.content.rootFolder, "name")
    finally:
        socket.setdefaulttimeout(before)
    assert client.read(client.content.rootFolder, "name") == {"name": "Datacenters"}  # a connection that waited goes on


# -- counters ----------------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_method(vcenter: VCenter, client: Client) -> None:
    vcenter.reset_counters()
    assert vcenter.counters()["requests"] == 0
    for _ in range(3):
        client.read(client.content.rootFolder, "name")
    client.si.CurrentTime()
    counters = vcenter.counters()
    assert counters["methods"] == {"RetrievePropertiesEx": 3, "CurrentTime": 1}
    assert counters["requests"] == 4 and counters["connections"] == 0
    assert counters["bytes_in"] > 1000 and counters["bytes_out"] > 1000


def test_calls_can_be_slowed(vcenter: VCenter, client: Client) -> None:
    vcenter.set(call_delays={"Current*": 0.3})
    begun = time.monotonic()
    client.si.CurrentTime()
    slow = time.monotonic() - begun
    vcenter.set(call_delays={})
    assert 0.3 <= slow < 2


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RestrictedVersion", "NoPermission", "NotAuthenticated", "NotSupported"])
def test_runtime_and_security_faults_come_from_the_call(vcenter: VCenter, client: Client, vm: t.Any, name: str) -> None:
    vcenter.fault("CreateSnapshotEx_Task", name, when="call")
    with pytest.raises(getattr(vim.fault, name, getattr(vmodl.fault, name, None))) as caught:
        client.create(vm, "a")
    assert caught.value.msg
    assert client.tree(vm) == {}


@pytest.mark.parametrize("name", METHOD_FAULTS)
def test_method_faults_end_the_task(vcenter: VCenter, client: Client, vm: t.Any, name: str) -> None:
    vcenter.fault("CreateSnapshotEx_Task", name, when="task")
    kind = getattr(vim.fault, name, None) or getattr(vmodl.fault, name)
    asks = {"memory": name.startswith("MemorySnapshot"), "quiesce": name.endswith("QuiesceFault")}
    assert isinstance(client.error(client.create(vm, "a", **asks)), kind)
    assert client.tree(vm) == {}


def test_a_quiesce_fault_strikes_only_who_asks_to_quiesce(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.fault("CreateSnapshot*", "FilesystemQuiesceFault")
    client.done(client.create(vm, "crash"))
    assert isinstance(client.error(client.create(vm, "clean", quiesce=True)), vim.fault.SnapshotFault)
    assert set(client.tree(vm)) == {"crash"}


def test_a_rule_is_for_some_vms_and_for_one_call_of_them(vcenter: VCenter, client: Client) -> None:
    web, db = (client.by_id(one["moid"]) for one in vcenter.make_vms({"name": "web77"}, {"name": "db77"}))
    vcenter.fault("CreateSnapshotEx_Task", "NoDiskSpace", vm="web*", nth=2, message="The disk of this test is full.")
    client.done(client.create(db, "a"))
    client.done(client.create(db, "b"))
    client.done(client.create(web, "a"))
    error = client.error(client.create(web, "b"))
    assert isinstance(error, vim.fault.NoDiskSpace) and error.faultMessage[0].message == "The disk of this test is full."
    client.done(client.create(web, "c"))


def test_rules_stand_on_the_command_line_too() -> None:
    with VCenter(faults=["RemoveSnapshot_Task:*VM1:SnapshotLocked:1"]) as other, login(other) as client:
        spared, struck = (client.by_id(other.vm(f"DC0_C0_RP0_VM{n}")["moid"]) for n in (0, 1))
        for vm, hit in ((spared, False), (struck, True), (struck, False)):
            snapshot = client.done(client.create(vm, "a"))
            info = client.info(snapshot.RemoveSnapshot_Task(removeChildren=False))
            assert isinstance(info.error, vim.fault.SnapshotLocked) == hit
    with pytest.raises(VCenterError, match="NoSuchFault"), VCenter(faults=["*:*:NoSuchFault"]):
        pass


def test_a_task_may_report_an_error_though_all_is_done(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.fault("CreateSnapshotEx_Task", "GenericVmConfigFault", when="after")
    assert isinstance(client.error(client.create(vm, "a")), vim.fault.GenericVmConfigFault)
    assert set(client.tree(vm)) == {"a"}


@pytest.mark.parametrize(("when", "left"), [("call", set()), ("after", {"a"})])
def test_an_answer_may_get_lost(vcenter: VCenter, client: Client, vm: t.Any, when: str, left: set[str]) -> None:
    vcenter.fault("CreateSnapshotEx_Task", "Disconnect", when=when)
    with pytest.raises((HTTPException, OSError)):
        client.create(vm, "a")
    time.sleep(0.2)
    assert set(client.tree(vm)) == left


def test_a_call_without_a_task_may_fail_before_or_after_it_is_done(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    snapshot = client.done(client.create(vm, "a"))
    vcenter.fault("RenameSnapshot", "InvalidState", nth=1)
    vcenter.fault("RenameSnapshot", "InvalidState", nth=2, when="after")
    for name in ("b", "c"):
        with pytest.raises(vim.fault.InvalidState):
            snapshot.RenameSnapshot(name=name)
        assert set(client.tree(vm)) == {"a" if name == "b" else "c"}


# -- the stock simulator -----------------------------------------------------------------------------------------------


def test_stock_is_the_unmodified_simulator() -> None:
    with VCenter(stock=True) as stock:
        with pytest.raises(vim.fault.InvalidLogin):
            Client(stock, password="wrong")
        (made,) = stock.make_vms({"name": "web01", "folder": "/DC0/vm/prod"})
        with login(stock) as client:
            vm = client.by_id(made["moid"])
            client.done(vm.CreateSnapshot_Task(name="a", description="", memory=False, quiesce=False))
            assert client.tree(vm) == {"a": (None, True)}
            assert not client.read(vm, "capability")["capability"].snapshotOperationsSupported
            with pytest.raises(vmodl.fault.MethodNotFound):
                client.create(vm, "b")
        assert stock.counters()["methods"]["CreateSnapshot_Task"] == 1
        with pytest.raises(VCenterError, match="there is no POST /settings here"):
            stock.set(task_time=1)
