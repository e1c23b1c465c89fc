// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// longestName is the limit for names in the vSphere client.
const longestName = 80

// wantedSnapshot has the parameters that both create methods share.
type wantedSnapshot struct {
	name        string
	description string
	memory      bool
	quiesce     bool
}

// snapshotRequest reads a call of one of the create methods.
func snapshotRequest(c *call) (wantedSnapshot, bool) {
	if c.method != "CreateSnapshot_Task" && c.method != "CreateSnapshotEx_Task" {
		return wantedSnapshot{}, false
	}
	request, err := c.decode()
	if err != nil {
		return wantedSnapshot{}, false
	}
	switch r := request.(type) {
	case *types.CreateSnapshot_Task:
		return wantedSnapshot{r.Name, r.Description, r.Memory, r.Quiesce}, true
	case *types.CreateSnapshotEx_Task:
		return wantedSnapshot{r.Name, r.Description, r.Memory, r.QuiesceSpec != nil}, true
	}
	return wantedSnapshot{}, false
}

// notNow returns why the VM's snapshots cannot be changed at present.
func notNow(vm *simulator.VirtualMachine) types.BaseMethodFault {
	switch {
	case vm.Config.Template, vm.Runtime.ConnectionState != types.VirtualMachineConnectionStateConnected:
		return &types.InvalidState{}
	case vm.Runtime.Question != nil:
		return &types.QuestionPending{Text: vm.Runtime.Question.Text}
	case !vm.Capability.SnapshotOperationsSupported:
		return &types.NotSupported{}
	}
	return nil
}

func validName(name string) types.BaseMethodFault {
	if name == "" || len([]rune(name)) > longestName {
		return &types.InvalidName{Name: name}
	}
	return nil
}

// create takes a snapshot. The VM is locked, here and below.
func (w *world) create(vm *simulator.VirtualMachine, wanted wantedSnapshot) (types.AnyType, types.BaseMethodFault) {
	state := w.state(vm)
	values := w.settings.get()
	on := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	memory := wanted.memory && on
	if fault := notNow(vm); fault != nil {
		return nil, fault
	}
	if fault := validName(wanted.name); fault != nil {
		return nil, fault
	}
	can := vm.Capability
	switch {
	case memory && !can.MemorySnapshotsSupported,
		!on && !can.PoweredOffSnapshotsSupported,
		vm.Snapshot != nil && !can.MultipleSnapshotsSupported:
		return nil, &types.NotSupported{}
	case memory && hasIndependentDisk(vm):
		return nil, &types.MemorySnapshotOnIndependentDisk{}
	case depth(vm) >= values.Levels:
		return nil, &types.TooManySnapshotLevels{}
	}
	need := values.DataBytes
	if memory {
		need += int64(vm.Config.Hardware.MemoryMB) << 20
	}
	if name, free := freeSpace(vm); free < need {
		return nil, &types.NoDiskSpace{FileFault: types.FileFault{File: vm.Config.Files.VmPathName}, Datastore: name}
	}

	snapshot := &simulator.VirtualMachineSnapshot{}
	snapshot.Vm = vm.Self
	snapshot.Config = *clone(vm.Config).(*types.VirtualMachineConfigInfo)
	ref := simulator.Map.Put(snapshot).Reference()
	power := vm.Runtime.PowerState
	if on && !memory {
		power = types.VirtualMachinePowerStatePoweredOff // a revert restores it
	}
	state.lastID++
	node := types.VirtualMachineSnapshotTree{
		Snapshot: ref, Vm: vm.Self, Name: wanted.name, Description: wanted.description, Id: state.lastID,
		CreateTime: w.settings.now(), State: power,
		// vSphere ignores quiesce if VMware Tools does not run in the guest.
		Quiesced:        wanted.quiesce && on && !memory && state.tools && can.QuiescedSnapshotsSupported,
		ReplaySupported: types.NewBool(false),
	}
	info := &types.VirtualMachineSnapshotInfo{}
	if vm.Snapshot != nil {
		info = clone(vm.Snapshot).(*types.VirtualMachineSnapshotInfo)
	}
	siblings := &info.RootSnapshotList
	if info.CurrentSnapshot != nil {
		parent := find(info.RootSnapshotList, *info.CurrentSnapshot)
		siblings = &parent.ChildSnapshotList
	}
	*siblings = append(*siblings, node)
	info.CurrentSnapshot = &ref
	state.freeze(ref, vm, memory, values)
	state.begin(vm, values)
	w.show(vm, info)
	return ref, nil
}

// revert restores configuration, data and power state of the snapshot.
func (w *world) revert(vm *simulator.VirtualMachine, ref types.ManagedObjectReference, suppress *bool) types.BaseMethodFault {
	state := w.state(vm)
	snapshot, ok := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot)
	if !ok || vm.Snapshot == nil {
		return &types.ManagedObjectNotFound{Obj: ref}
	}
	if fault := notNow(vm); fault != nil {
		return fault
	}
	if !vm.Capability.RevertToSnapshotSupported {
		return &types.NotSupported{}
	}
	node := find(vm.Snapshot.RootSnapshotList, ref)
	config := clone(&snapshot.Config).(*types.VirtualMachineConfigInfo)
	// Properties that the inventory uses are not part of the snapshot.
	config.Name, config.Template, config.Files = vm.Config.Name, vm.Config.Template, vm.Config.Files
	config.Uuid, config.InstanceUuid = vm.Config.Uuid, vm.Config.InstanceUuid
	vm.Config = config
	state.thaw(ref)
	state.begin(vm, w.settings.get())
	power := node.State
	if suppress != nil && *suppress && power == types.VirtualMachinePowerStatePoweredOn {
		power = types.VirtualMachinePowerState(w.settings.get().SuppressedPower)
	}
	setPower(vm, power)
	info := clone(vm.Snapshot).(*types.VirtualMachineSnapshotInfo)
	info.CurrentSnapshot = &ref
	w.show(vm, info)
	w.settle(vm)
	return nil
}

func (w *world) remove(vm *simulator.VirtualMachine, ref types.ManagedObjectReference, children bool, consolidate *bool) types.BaseMethodFault {
	if vm.Snapshot == nil || find(vm.Snapshot.RootSnapshotList, ref) == nil {
		return &types.ManagedObjectNotFound{Obj: ref}
	}
	if fault := notNow(vm); fault != nil {
		return fault
	}
	info := clone(vm.Snapshot).(*types.VirtualMachineSnapshotInfo)
	gone := []types.ManagedObjectReference{ref}
	if children {
		walk(find(info.RootSnapshotList, ref).ChildSnapshotList, func(node *types.VirtualMachineSnapshotTree) {
			gone = append(gone, node.Snapshot)
		})
	}
	for _, one := range gone {
		if info.CurrentSnapshot != nil && *info.CurrentSnapshot == one {
			// If a whole subtree is removed, the only remaining ancestor is the parent of its root.
			info.CurrentSnapshot = parentOf(info.RootSnapshotList, ref)
			break
		}
	}
	info.RootSnapshotList = without(info.RootSnapshotList, ref, children)
	w.drop(vm, info, gone)
	if consolidate != nil && !*consolidate {
		vm.Runtime.ConsolidationNeeded = types.NewBool(true)
		w.settle(vm)
	}
	return nil
}

func (w *world) removeAll(vm *simulator.VirtualMachine) types.BaseMethodFault {
	if fault := notNow(vm); fault != nil {
		return fault
	}
	if vm.Snapshot == nil {
		return nil
	}
	var gone []types.ManagedObjectReference
	walk(vm.Snapshot.RootSnapshotList, func(node *types.VirtualMachineSnapshotTree) { gone = append(gone, node.Snapshot) })
	w.drop(vm, &types.VirtualMachineSnapshotInfo{}, gone)
	return nil
}

// drop removes snapshots, children first, and publishes the remaining tree.
func (w *world) drop(vm *simulator.VirtualMachine, info *types.VirtualMachineSnapshotInfo, gone []types.ManagedObjectReference) {
	state := w.state(vm)
	for i := len(gone) - 1; i >= 0; i-- {
		state.forget(gone[i])
	}
	w.show(vm, info)
	for _, ref := range gone {
		simulator.Map.Remove(ref)
	}
}

func (w *world) consolidate(vm *simulator.VirtualMachine) types.BaseMethodFault {
	vm.Runtime.ConsolidationNeeded = types.NewBool(false)
	w.settle(vm)
	return nil
}

// rename implements RenameSnapshot, which is not a task.
func (w *world) rename(c *call) (fault types.BaseMethodFault) {
	vm := c.target()
	request, err := c.decode()
	if vm == nil || err != nil {
		return &types.ManagedObjectNotFound{Obj: c.this}
	}
	wanted := request.(*types.RenameSnapshot)
	if c.given("name") {
		if fault := validName(wanted.Name); fault != nil {
			return fault
		}
	}
	simulator.Map.WithLock(vm, func() {
		if fault = notNow(vm); fault != nil {
			return
		}
		if vm.Snapshot == nil || find(vm.Snapshot.RootSnapshotList, c.this) == nil {
			fault = &types.ManagedObjectNotFound{Obj: c.this}
			return
		}
		info := clone(vm.Snapshot).(*types.VirtualMachineSnapshotInfo)
		node := find(info.RootSnapshotList, c.this)
		if c.given("name") {
			node.Name = wanted.Name
		}
		if c.given("description") {
			node.Description = wanted.Description
		}
		w.show(vm, info)
	})
	return fault
}

// show sets the VM's tree, and the other properties that repeat its data.
func (w *world) show(vm *simulator.VirtualMachine, info *types.VirtualMachineSnapshotInfo) {
	vm.RootSnapshot = nil
	for _, root := range info.RootSnapshotList {
		vm.RootSnapshot = append(vm.RootSnapshot, root.Snapshot)
	}
	walk(info.RootSnapshotList, func(node *types.VirtualMachineSnapshotTree) {
		var children []types.ManagedObjectReference
		for _, child := range node.ChildSnapshotList {
			children = append(children, child.Snapshot)
		}
		if snapshot, ok := simulator.Map.Get(node.Snapshot).(*simulator.VirtualMachineSnapshot); ok {
			simulator.Map.WithLock(snapshot, func() { snapshot.ChildSnapshot = children })
		}
	})
	vm.Snapshot = info
	if len(info.RootSnapshotList) == 0 {
		vm.Snapshot = nil
	}
	w.state(vm).render(vm)
	changes.announce()
}

// walk visits parents before their children.
func walk(nodes []types.VirtualMachineSnapshotTree, visit func(*types.VirtualMachineSnapshotTree)) {
	for i := range nodes {
		visit(&nodes[i])
		walk(nodes[i].ChildSnapshotList, visit)
	}
}

func find(nodes []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) (found *types.VirtualMachineSnapshotTree) {
	walk(nodes, func(node *types.VirtualMachineSnapshotTree) {
		if node.Snapshot == ref {
			found = node
		}
	})
	return found
}

func parentOf(nodes []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) (parent *types.ManagedObjectReference) {
	walk(nodes, func(node *types.VirtualMachineSnapshotTree) {
		for _, child := range node.ChildSnapshotList {
			if child.Snapshot == ref {
				up := node.Snapshot
				parent = &up
			}
		}
	})
	return parent
}

// without returns the tree without the snapshot; its children move up, or are removed with it.
func without(nodes []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference, children bool) []types.VirtualMachineSnapshotTree {
	var left []types.VirtualMachineSnapshotTree
	for _, node := range nodes {
		if node.Snapshot != ref {
			node.ChildSnapshotList = without(node.ChildSnapshotList, ref, children)
			left = append(left, node)
		} else if !children {
			left = append(left, node.ChildSnapshotList...)
		}
	}
	return left
}

// depth is the number of snapshots below the VM's present state.
func depth(vm *simulator.VirtualMachine) int {
	if vm.Snapshot == nil {
		return 0
	}
	levels := 0
	for ref := vm.Snapshot.CurrentSnapshot; ref != nil; ref = parentOf(vm.Snapshot.RootSnapshotList, *ref) {
		levels++
	}
	return levels
}
