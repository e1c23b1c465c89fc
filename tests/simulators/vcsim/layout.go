// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"path"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// firstKey is the first of our own file keys, above all keys of the simulator.
const firstKey = 1000

// vmState is our additional state of one VM.
type vmState struct {
	lastID   int32 // of a snapshot; never reused
	lastKey  int32 // of a file
	lastDisk int   // the number in the name of a delta
	tools    bool  // true if VMware Tools runs while the VM is on
	chains   map[int32][]*unit
	frozen   map[types.ManagedObjectReference]*frozen
}

// unit is one disk file with its descriptor. Disks and snapshots are chains of them, the base first.
type unit struct {
	path string
	size int64
	keys [2]int32 // descriptor and extent
	base bool
}

// frozen are the files of a snapshot.
type frozen struct {
	chains map[int32][]*unit
	number int32
	data   int64
	memory int64
	keys   [2]int32 // data and memory
}

func newVMState() *vmState {
	return &vmState{
		lastKey: firstKey, tools: true, chains: map[int32][]*unit{}, frozen: map[types.ManagedObjectReference]*frozen{},
	}
}

func (s *vmState) newKeys() [2]int32 {
	s.lastKey += 2
	return [2]int32{s.lastKey - 2, s.lastKey - 1}
}

// disks are the disks that snapshots include: neither independent nor raw device mappings.
func disks(devices []types.BaseVirtualDevice) map[int32]*types.VirtualDiskFlatVer2BackingInfo {
	found := map[int32]*types.VirtualDiskFlatVer2BackingInfo{}
	for _, device := range devices {
		if disk, ok := device.(*types.VirtualDisk); ok {
			backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			if ok && !strings.HasPrefix(backing.DiskMode, "independent") {
				found[disk.Key] = backing
			}
		}
	}
	return found
}

// learn adds new disks, and removes those that the VM no longer has.
func (s *vmState) learn(vm *simulator.VirtualMachine) {
	present := map[int32]bool{}
	for _, device := range vm.Config.Hardware.Device {
		disk, ok := device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		present[disk.Key] = true
		backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if ok && s.chains[disk.Key] == nil {
			s.chains[disk.Key] = []*unit{{path: backing.FileName, size: disk.CapacityInKB << 10, keys: s.newKeys(), base: true}}
		}
	}
	for key := range s.chains {
		if !present[key] {
			delete(s.chains, key)
		}
	}
}

// freeze stores the present chains as the chains of a snapshot.
func (s *vmState) freeze(ref types.ManagedObjectReference, vm *simulator.VirtualMachine, memory bool, values settingValues) {
	s.learn(vm)
	snapshot := &frozen{chains: map[int32][]*unit{}, number: s.lastID, data: values.DataBytes, keys: s.newKeys()}
	for key := range disks(vm.Config.Hardware.Device) {
		snapshot.chains[key] = s.chains[key]
	}
	if memory {
		snapshot.memory = int64(vm.Config.Hardware.MemoryMB) << 20
	}
	s.frozen[ref] = snapshot
}

// thaw sets the VM's chains to those of a snapshot.
func (s *vmState) thaw(ref types.ManagedObjectReference) {
	for key, chain := range s.frozen[ref].chains {
		s.chains[key] = chain
	}
}

// begin adds a new delta to every disk, for all further writes.
func (s *vmState) begin(vm *simulator.VirtualMachine, values settingValues) {
	s.learn(vm)
	s.lastDisk++
	for key := range disks(vm.Config.Hardware.Device) {
		chain := s.chains[key]
		name := strings.TrimSuffix(chain[0].path, ".vmdk") + fmt.Sprintf("-%06d.vmdk", s.lastDisk)
		delta := &unit{path: name, size: values.DeltaBytes, keys: s.newKeys()}
		s.chains[key] = append(append([]*unit{}, chain...), delta)
	}
}

// next returns the deltas directly on top of a snapshot's chain.
func (s *vmState) next(chain []*unit, key int32) []*unit {
	var found []*unit
	look := func(other []*unit) {
		if len(other) <= len(chain) || other[len(chain)-1] != chain[len(chain)-1] {
			return
		}
		for _, known := range found {
			if known == other[len(chain)] {
				return
			}
		}
		found = append(found, other[len(chain)])
	}
	look(s.chains[key])
	for _, snapshot := range s.frozen {
		look(snapshot.chains[key])
	}
	return found
}

// forget merges the only delta on a snapshot into the file below it. With several deltas that file stays, since they share it.
func (s *vmState) forget(ref types.ManagedObjectReference) {
	snapshot := s.frozen[ref]
	delete(s.frozen, ref)
	if snapshot == nil {
		return
	}
	for key, chain := range snapshot.chains {
		next := s.next(chain, key)
		if len(next) != 1 {
			continue
		}
		if last := chain[len(chain)-1]; !last.base { // a base already has its full size
			last.size += next[0].size
		}
		s.chains[key] = cut(s.chains[key], next[0])
		for _, other := range s.frozen {
			if other.chains[key] != nil {
				other.chains[key] = cut(other.chains[key], next[0])
			}
		}
	}
}

func cut(chain []*unit, out *unit) []*unit {
	var left []*unit
	for _, one := range chain {
		if one != out {
			left = append(left, one)
		}
	}
	return left
}

// render writes the chains into the properties of the VM and of its snapshots: layoutEx and the backings of the disks.
func (s *vmState) render(vm *simulator.VirtualMachine) {
	s.learn(vm)
	layout := &types.VirtualMachineFileLayoutEx{Timestamp: vm.LayoutEx.Timestamp}
	for _, file := range vm.LayoutEx.File {
		if !strings.HasPrefix(file.Type, "disk") && !strings.HasPrefix(file.Type, "snapshot") {
			layout.File = append(layout.File, file)
		}
	}
	listed := map[int32]bool{}
	add := func(key int32, name, kind string, size int64) {
		if !listed[key] {
			listed[key] = true
			layout.File = append(layout.File, types.VirtualMachineFileLayoutExFileInfo{
				Key: key, Name: name, Type: kind, Size: size, UniqueSize: size, Accessible: types.NewBool(true),
			})
		}
	}
	chains := func(of map[int32][]*unit) (all []types.VirtualMachineFileLayoutExDiskLayout) {
		for _, device := range vm.Config.Hardware.Device { // in device order
			key := device.GetVirtualDevice().Key
			if of[key] == nil {
				continue
			}
			disk := types.VirtualMachineFileLayoutExDiskLayout{Key: key}
			for _, one := range of[key] {
				stem, extent := strings.TrimSuffix(one.path, ".vmdk"), "-flat.vmdk"
				if !one.base {
					extent = "-delta.vmdk"
				}
				add(one.keys[0], one.path, "diskDescriptor", 512)
				add(one.keys[1], stem+extent, "diskExtent", one.size)
				disk.Chain = append(disk.Chain, types.VirtualMachineFileLayoutExDiskUnit{FileKey: []int32{one.keys[0], one.keys[1]}})
			}
			all = append(all, disk)
		}
		return all
	}
	layout.Disk = chains(s.chains)
	vm.Config.Hardware.Device = backed(vm.Config.Hardware.Device, s.chains)
	folder := strings.TrimSuffix(path.Dir(vm.Config.Files.VmPathName), "/")
	if vm.Snapshot != nil {
		walk(vm.Snapshot.RootSnapshotList, func(node *types.VirtualMachineSnapshotTree) {
			files := s.frozen[node.Snapshot]
			stem := fmt.Sprintf("%s/%s-Snapshot%d", folder, vm.Name, files.number)
			add(files.keys[0], stem+".vmsn", "snapshotData", files.data)
			row := types.VirtualMachineFileLayoutExSnapshotLayout{Key: node.Snapshot, DataKey: files.keys[0], MemoryKey: -1}
			if files.memory > 0 {
				add(files.keys[1], stem+".vmem", "snapshotMemory", files.memory)
				row.MemoryKey = files.keys[1]
			}
			row.Disk = chains(files.chains)
			layout.Snapshot = append(layout.Snapshot, row)
			if snapshot, ok := simulator.Map.Get(node.Snapshot).(*simulator.VirtualMachineSnapshot); ok {
				simulator.Map.WithLock(snapshot, func() {
					snapshot.Config.Hardware.Device = backed(snapshot.Config.Hardware.Device, files.chains)
				})
			}
		})
	}
	vm.LayoutEx = layout
}

// backed returns a copy of the devices, with the backings of the disks as linked chains from the last file down.
func backed(devices []types.BaseVirtualDevice, chains map[int32][]*unit) []types.BaseVirtualDevice {
	copies := append([]types.BaseVirtualDevice{}, devices...)
	for i, device := range copies {
		disk, ok := device.(*types.VirtualDisk)
		if !ok || chains[disk.Key] == nil {
			continue
		}
		last, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if !ok {
			continue
		}
		var backing *types.VirtualDiskFlatVer2BackingInfo
		for _, one := range chains[disk.Key] {
			up := *last
			up.FileName, up.Parent = one.path, backing
			backing = &up
		}
		edited := *disk
		edited.Backing = backing
		copies[i] = &edited
	}
	return copies
}
