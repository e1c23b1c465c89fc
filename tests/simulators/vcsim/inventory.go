// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// newVM is a VM to create: powered off unless the knobs set another state.
type newVM struct {
	Folder string `json:"folder"` // for example /DC0/vm/prod; missing folders are created
	Name   string `json:"name"`
	knobs
}

// escape returns a name as vCenter stores it.
var escape = strings.NewReplacer("%", "%25", "/", "%2f", "\\", "%5c")

// makeVM creates a VM with one disk and one network card.
func makeVM(service *simulator.Service, wanted *newVM) (*simulator.VirtualMachine, error) {
	ctx := context.Background()
	client, err := vim25.NewClient(ctx, service)
	if err != nil {
		return nil, err
	}
	folder, err := makeFolder(ctx, client, wanted.Folder)
	if err != nil {
		return nil, err
	}
	name := escape.Replace(wanted.Name)
	spec := types.VirtualMachineConfigSpec{
		Name:    name,
		GuestId: string(types.VirtualMachineGuestOsIdentifierOtherGuest),
		Files:   &types.VirtualMachineFileInfo{VmPathName: "[LocalDS_0]"},
	}
	var devices object.VirtualDeviceList
	controller, err := devices.CreateSCSIController("pvscsi")
	if err != nil {
		return nil, err
	}
	disk := devices.CreateDisk(controller.(types.BaseVirtualController), types.ManagedObjectReference{}, "")
	// If only the datastore is given, the simulator picks a free file name: VMs of the same name in two folders need two files.
	disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName = "[LocalDS_0]"
	disk.CapacityInKB = 1024
	network := simulator.Map.Any("DistributedVirtualPortgroup").(*simulator.DistributedVirtualPortgroup)
	backing, err := object.NewDistributedVirtualPortgroup(client, network.Self).EthernetCardBackingInfo(ctx)
	if err != nil {
		return nil, err
	}
	card, err := devices.CreateEthernetCard("vmxnet3", backing)
	if err != nil {
		return nil, err
	}
	devices = append(devices, controller, disk, card)
	if spec.DeviceChange, err = devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd); err != nil {
		return nil, err
	}
	pool := object.NewResourcePool(client, simulator.Map.Any("ResourcePool").Reference())
	task, err := folder.CreateVM(ctx, spec, pool, nil)
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return nil, err
	}
	return simulator.Map.Get(info.Result.(types.ManagedObjectReference)).(*simulator.VirtualMachine), nil
}

func makeFolder(ctx context.Context, client *vim25.Client, path string) (*object.Folder, error) {
	words := strings.Split(strings.Trim(path, "/"), "/")
	if len(words) < 2 || words[1] != "vm" {
		return nil, fmt.Errorf("%q is no folder of VMs, such as /DC0/vm/prod", path)
	}
	for _, entity := range simulator.Map.All("Datacenter") {
		datacenter := entity.(*simulator.Datacenter)
		if datacenter.Name != words[0] {
			continue
		}
		folder := object.NewFolder(client, datacenter.VmFolder)
		for _, word := range words[2:] {
			name := escape.Replace(word)
			here := simulator.Map.Get(folder.Reference()).(*simulator.Folder)
			child := simulator.Map.FindByName(name, here.ChildEntity)
			if child != nil {
				folder = object.NewFolder(client, child.Reference())
				continue
			}
			made, err := folder.CreateFolder(ctx, name)
			if err != nil {
				return nil, err
			}
			folder = made
		}
		return folder, nil
	}
	return nil, fmt.Errorf("there is no datacenter %s", words[0])
}

// findVM finds one VM by its managed object id, its inventory path or its name.
func findVM(word string) (*simulator.VirtualMachine, error) {
	var found []*simulator.VirtualMachine
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		if vm.Self.Value == word {
			return vm, nil
		}
		if vm.Name == escape.Replace(word) || strings.HasPrefix(word, "/") && inventoryPath(vm) == word {
			found = append(found, vm)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d VMs are called %s", len(found), word)
	}
	return found[0], nil
}

func inventoryPath(entity mo.Entity) string {
	path := ""
	for entity != nil && entity.Entity().Parent != nil {
		path = "/" + entity.Entity().Name + path
		entity, _ = simulator.Map.Get(*entity.Entity().Parent).(mo.Entity)
	}
	return path
}

// roomyDatastores sets fixed sizes of datastores: tests must not depend on the disk of this machine.
func roomyDatastores() {
	for _, entity := range simulator.Map.All("Datastore") {
		setSpace(entity.(*simulator.Datastore), 1<<40, 1<<39)
	}
}

func setSpace(datastore *simulator.Datastore, capacity, free int64) {
	simulator.Map.WithLock(datastore, func() {
		datastore.Summary.Capacity, datastore.Summary.FreeSpace = capacity, free
		datastore.Info.GetDatastoreInfo().FreeSpace = free
	})
	changes.announce()
}

// freeSpace is the free space of the datastore with the VM's files.
func freeSpace(vm *simulator.VirtualMachine) (name string, free int64) {
	for _, ref := range vm.Datastore {
		if datastore, ok := simulator.Map.Get(ref).(*simulator.Datastore); ok {
			return datastore.Name, datastore.Summary.FreeSpace
		}
	}
	return "", 0
}

type refsResponse struct {
	Returnval []types.ManagedObjectReference `xml:"returnval"`
}

type timeResponse struct {
	Returnval time.Time `xml:"returnval"`
}

// findAllByUUID implements FindAllByUuid for VMs.
func findAllByUUID(c *call) (interface{}, types.BaseMethodFault) {
	decoded, err := c.decode()
	if err != nil {
		return nil, &types.InvalidRequest{}
	}
	request := decoded.(*types.FindAllByUuid)
	var response refsResponse
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		uuid := vm.Config.Uuid
		if request.InstanceUuid != nil && *request.InstanceUuid {
			uuid = vm.Config.InstanceUuid
		}
		if request.VmSearch && strings.EqualFold(uuid, request.Uuid) {
			response.Returnval = append(response.Returnval, vm.Self)
		}
	}
	return response, nil
}
