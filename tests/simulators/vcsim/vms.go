// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// dataKey is an extraConfig key that represents the contents of the disks: a snapshot stores it, a revert restores it.
const dataKey = "guestinfo.safepoint.data"

// knobs are the settings of one VM for tests. Missing fields are not changed.
type knobs struct {
	Power               *types.VirtualMachinePowerState      `json:"power"`
	Connection          *types.VirtualMachineConnectionState `json:"connection"`
	Question            *string                              `json:"question"` // "" answers it
	ConsolidationNeeded *bool                                `json:"consolidation_needed"`
	Tools               *bool                                `json:"tools"` // true if they run while the VM is on
	Capability          map[string]bool                      `json:"capability"`
	Template            *bool                                `json:"template"`
	Annotation          *string                              `json:"annotation"`
	CPUs                *int32                               `json:"cpus"`
	MemoryMB            *int32                               `json:"memory_mb"`
	DiskKB              *int64                               `json:"disk_kb"`
	DiskMode            *string                              `json:"disk_mode"` // of the first disk
	RDM                 *string                              `json:"rdm"`       // physicalMode or virtualMode: the first disk is a raw device mapping
	BusSharing          *types.VirtualSCSISharing            `json:"bus_sharing"`
	Passthrough         *bool                                `json:"passthrough"` // a PCI device of the host
	Data                *string                              `json:"data"`
	UUID                *string                              `json:"uuid"`
	InstanceUUID        *string                              `json:"instance_uuid"`
	DisabledMethods     *[]string                            `json:"disabled_methods"`
	SnapshotSizes       map[string]snapshotSizes             `json:"snapshot_sizes"` // by snapshot name
}

// snapshotSizes are in bytes: the snapshot's own file, its memory, and the delta of each disk that was created after it.
type snapshotSizes struct {
	Data   *int64 `json:"data"`
	Memory *int64 `json:"memory"`
	Delta  *int64 `json:"delta"`
}

// adopt adds the properties of a VM on a real host. The VM is locked, here and below.
func (w *world) adopt(vm *simulator.VirtualMachine) {
	w.state(vm)
	for _, flag := range []*bool{
		&vm.Capability.SnapshotOperationsSupported, &vm.Capability.MultipleSnapshotsSupported,
		&vm.Capability.SnapshotConfigSupported, &vm.Capability.PoweredOffSnapshotsSupported,
		&vm.Capability.MemorySnapshotsSupported, &vm.Capability.RevertToSnapshotSupported,
		&vm.Capability.QuiescedSnapshotsSupported, &vm.Capability.DisableSnapshotsSupported,
	} {
		*flag = true
	}
	vm.Runtime.ConsolidationNeeded = types.NewBool(false)
	w.settle(vm)
}

// settle updates the properties that repeat others.
func (w *world) settle(vm *simulator.VirtualMachine) {
	state := w.state(vm)
	config := &vm.Summary.Config
	vm.Config.Name, config.Name = vm.Name, vm.Name
	config.NumCpu, config.MemorySizeMB = vm.Config.Hardware.NumCPU, vm.Config.Hardware.MemoryMB
	config.Annotation, config.Template = vm.Config.Annotation, vm.Config.Template
	config.Uuid, config.InstanceUuid = vm.Config.Uuid, vm.Config.InstanceUuid
	vm.Config.ExtraConfig = lastOfEach(vm.Config.ExtraConfig)

	guest := types.GuestInfo{}
	if vm.Guest != nil {
		guest = *vm.Guest
	}
	running := state.tools && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)
	guest.ToolsStatus = types.VirtualMachineToolsStatusToolsNotRunning
	guest.ToolsVersionStatus2 = string(types.VirtualMachineToolsVersionStatusGuestToolsCurrent)
	guest.GuestState = string(types.VirtualMachineGuestStateNotRunning)
	if running {
		guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
		guest.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
		guest.GuestState = string(types.VirtualMachineGuestStateRunning)
	}
	vm.Guest = &guest
	if vm.Summary.Guest != nil {
		summary := *vm.Summary.Guest
		summary.ToolsRunningStatus, summary.ToolsStatus = guest.ToolsRunningStatus, guest.ToolsStatus
		vm.Summary.Guest = &summary
	}

	booted := vm.Summary.Runtime.BootTime
	vm.Summary.Runtime = vm.Runtime
	vm.Summary.Runtime.BootTime = booted
	state.render(vm)
	changes.announce()
}

// lastOfEach keeps the last value of each key, since the simulator only appends; an empty value removes a key, as in vSphere.
func lastOfEach(options []types.BaseOptionValue) []types.BaseOptionValue {
	last := map[string]types.BaseOptionValue{}
	for _, option := range options {
		last[option.GetOptionValue().Key] = option
	}
	var left []types.BaseOptionValue
	for _, option := range options {
		value := option.GetOptionValue()
		if last[value.Key] == option && value.Value != "" {
			left = append(left, option)
		}
	}
	return left
}

func setPower(vm *simulator.VirtualMachine, power types.VirtualMachinePowerState) {
	if power == types.VirtualMachinePowerStatePoweredOn && vm.Runtime.PowerState != power {
		now := time.Now().UTC()
		vm.Summary.Runtime.BootTime = &now
	}
	vm.Runtime.PowerState = power
}

func hasIndependentDisk(vm *simulator.VirtualMachine) bool {
	for _, device := range vm.Config.Hardware.Device {
		if disk, ok := device.(*types.VirtualDisk); ok {
			mode := reflect.ValueOf(disk.Backing).Elem().FieldByName("DiskMode")
			if mode.IsValid() && strings.HasPrefix(mode.String(), "independent") {
				return true
			}
		}
	}
	return false
}

// turn sets the knobs of a VM.
func (w *world) turn(vm *simulator.VirtualMachine, k *knobs) error {
	state := w.state(vm)
	config := clone(vm.Config).(*types.VirtualMachineConfigInfo)
	if err := k.turnConfig(config); err != nil {
		return err
	}
	for name, value := range k.Capability {
		field := reflect.ValueOf(&vm.Capability).Elem().FieldByName(strings.Title(name))
		switch {
		case field.IsValid() && field.Kind() == reflect.Bool:
			field.SetBool(value)
		case field.IsValid() && field.Kind() == reflect.Ptr:
			field.Set(reflect.ValueOf(types.NewBool(value)))
		default:
			return fmt.Errorf("there is no capability %s", name)
		}
	}
	for name, sizes := range k.SnapshotSizes {
		if err := state.resize(vm, name, sizes); err != nil {
			return err
		}
	}
	vm.Config = config
	if k.Power != nil {
		setPower(vm, *k.Power)
	}
	if k.Connection != nil {
		vm.Runtime.ConnectionState = *k.Connection
	}
	if k.Question != nil {
		vm.Runtime.Question = nil
		if *k.Question != "" {
			vm.Runtime.Question = &types.VirtualMachineQuestionInfo{Id: "1", Text: *k.Question, Choice: types.ChoiceOption{
				ChoiceInfo: []types.BaseElementDescription{&types.ElementDescription{
					Description: types.Description{Label: "Yes", Summary: "Yes"}, Key: "0",
				}},
			}}
		}
	}
	if k.ConsolidationNeeded != nil {
		vm.Runtime.ConsolidationNeeded = k.ConsolidationNeeded
	}
	if k.Tools != nil {
		state.tools = *k.Tools
	}
	if k.DisabledMethods != nil {
		vm.DisabledMethod = *k.DisabledMethods
	}
	w.settle(vm)
	return nil
}

func (k *knobs) turnConfig(config *types.VirtualMachineConfigInfo) error {
	if k.Template != nil {
		config.Template = *k.Template
	}
	if k.Annotation != nil {
		config.Annotation = *k.Annotation
	}
	if k.CPUs != nil {
		config.Hardware.NumCPU = *k.CPUs
	}
	if k.MemoryMB != nil {
		config.Hardware.MemoryMB = *k.MemoryMB
	}
	if k.UUID != nil {
		config.Uuid = *k.UUID
	}
	if k.InstanceUUID != nil {
		config.InstanceUuid = *k.InstanceUUID
	}
	if k.Data != nil {
		config.ExtraConfig = append(config.ExtraConfig, &types.OptionValue{Key: dataKey, Value: *k.Data})
	}
	if k.Passthrough != nil {
		var left []types.BaseVirtualDevice
		for _, device := range config.Hardware.Device {
			if _, ok := device.(*types.VirtualPCIPassthrough); !ok {
				left = append(left, device)
			}
		}
		if *k.Passthrough {
			left = append(left, &types.VirtualPCIPassthrough{VirtualDevice: types.VirtualDevice{
				Key: 13000, DeviceInfo: &types.Description{Label: "PCI device 0", Summary: "PCI device 0"},
			}})
		}
		config.Hardware.Device = left
	}
	if k.BusSharing != nil {
		for _, device := range config.Hardware.Device {
			if controller, ok := device.(types.BaseVirtualSCSIController); ok {
				controller.GetVirtualSCSIController().SharedBus = *k.BusSharing
			}
		}
	}
	return k.turnDisk(config)
}

func (k *knobs) turnDisk(config *types.VirtualMachineConfigInfo) error {
	if k.DiskKB == nil && k.DiskMode == nil && k.RDM == nil {
		return nil
	}
	for _, device := range config.Hardware.Device {
		disk, ok := device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		if k.DiskKB != nil {
			disk.CapacityInKB, disk.CapacityInBytes = *k.DiskKB, *k.DiskKB<<10
		}
		if k.DiskMode != nil {
			reflect.ValueOf(disk.Backing).Elem().FieldByName("DiskMode").SetString(*k.DiskMode)
		}
		if flat, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && k.RDM != nil {
			disk.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{
				VirtualDeviceFileBackingInfo: flat.VirtualDeviceFileBackingInfo,
				CompatibilityMode:            *k.RDM, DiskMode: flat.DiskMode, LunUuid: "0200000000", DeviceName: "vml.0200000000",
			}
		}
		return nil
	}
	return fmt.Errorf("the VM has no disk")
}

// resize sets the sizes of the files of one snapshot.
func (s *vmState) resize(vm *simulator.VirtualMachine, name string, sizes snapshotSizes) error {
	var files *frozen
	if vm.Snapshot != nil {
		walk(vm.Snapshot.RootSnapshotList, func(node *types.VirtualMachineSnapshotTree) {
			if node.Name == name {
				files = s.frozen[node.Snapshot]
			}
		})
	}
	if files == nil {
		return fmt.Errorf("there is no snapshot %s", name)
	}
	if sizes.Data != nil {
		files.data = *sizes.Data
	}
	if sizes.Memory != nil {
		files.memory = *sizes.Memory
	}
	if sizes.Delta != nil {
		for key, chain := range files.chains {
			for _, delta := range s.next(chain, key) {
				delta.size = *sizes.Delta
			}
		}
	}
	return nil
}
