// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"context"
	"reflect"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// world is our additional state of all VMs, and the calls that we handle instead of the simulator.
type world struct {
	settings *settings
	faults   *faultRules
	tasks    *tasks
	mu       sync.Mutex
	states   map[types.ManagedObjectReference]*vmState
}

func newWorld(s *settings, faults *faultRules) *world {
	return &world{settings: s, faults: faults, tasks: newTasks(s), states: map[types.ManagedObjectReference]*vmState{}}
}

// extend adds our own objects to the simulator's inventory, and enables snapshots for its VMs.
func extend(w *world) {
	simulator.Map.AddHandler(changes)
	for _, ref := range propertyCollectors() {
		collector := &propertyCollector{}
		collector.Self = ref
		simulator.Map.Put(collector)
	}
	roomyDatastores()
	w.adoptAll()
}

// state returns our additional state of a VM. Its fields are used with the VM locked.
func (w *world) state(vm *simulator.VirtualMachine) *vmState {
	w.mu.Lock()
	defer w.mu.Unlock()
	state := w.states[vm.Self]
	if state == nil {
		state = newVMState()
		w.states[vm.Self] = state
	}
	return state
}

// adoptAll adopts every new VM.
func (w *world) adoptAll() {
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vm, ok := entity.(*simulator.VirtualMachine)
		if !ok || vm.Config == nil {
			continue
		}
		w.mu.Lock()
		known := w.states[vm.Self] != nil
		w.mu.Unlock()
		if !known {
			simulator.Map.WithLock(vm, func() { w.adopt(vm) })
		}
	}
}

// answer returns the response or the fault of a call that we handle.
func (w *world) answer(c *call, rule *faultRule) (response interface{}, fault types.BaseMethodFault, ours bool) {
	if vm := c.target(); vm != nil {
		for _, disabled := range vm.DisabledMethod {
			if disabled == c.method {
				return nil, &types.MethodDisabled{Source: "another solution"}, true
			}
		}
	}
	switch c.method {
	case "CurrentTime":
		return timeResponse{w.settings.now()}, nil, true
	case "FindAllByUuid":
		response, fault = findAllByUUID(c)
		return response, fault, true
	case "HasPrivilegeOnEntities", "FetchUserPrivilegeOnEntities":
		response, fault = privilegesOf(c)
		return response, fault, true
	case "CancelTask":
		fault, ours = w.tasks.cancel(c.this)
		return emptyResponse{}, fault, ours
	case "RenameSnapshot":
		return emptyResponse{}, w.rename(c), true
	}
	if !c.makesTask() {
		return nil, nil, false
	}
	response, fault = w.startTask(c, rule)
	return response, fault, true
}

// startTask starts the task for a method of a VM or a snapshot that returns one.
func (w *world) startTask(c *call, rule *faultRule) (interface{}, types.BaseMethodFault) {
	vm := c.target()
	if vm == nil {
		return nil, &types.ManagedObjectNotFound{Obj: c.this}
	}
	request, err := c.decode()
	if err != nil {
		return nil, &types.InvalidRequest{}
	}
	j := &job{vm: vm, method: c.method, user: c.user.name, cancelable: true}
	switch request := request.(type) {
	case *types.CreateSnapshot_Task, *types.CreateSnapshotEx_Task:
		wanted, _ := snapshotRequest(c)
		j.work = func() (types.AnyType, types.BaseMethodFault) { return w.create(vm, wanted) }
	case *types.RevertToSnapshot_Task:
		j.work = func() (types.AnyType, types.BaseMethodFault) {
			return nil, w.revert(vm, request.This, request.SuppressPowerOn)
		}
	case *types.RevertToCurrentSnapshot_Task:
		j.work = func() (types.AnyType, types.BaseMethodFault) {
			if vm.Snapshot == nil || vm.Snapshot.CurrentSnapshot == nil {
				return nil, &types.NotFound{}
			}
			return nil, w.revert(vm, *vm.Snapshot.CurrentSnapshot, request.SuppressPowerOn)
		}
	case *types.RemoveSnapshot_Task:
		j.cancelable = false
		j.work = func() (types.AnyType, types.BaseMethodFault) {
			return nil, w.remove(vm, request.This, request.RemoveChildren, request.Consolidate)
		}
	case *types.RemoveAllSnapshots_Task:
		j.cancelable = false
		j.work = func() (types.AnyType, types.BaseMethodFault) { return nil, w.removeAll(vm) }
	case *types.ConsolidateVMDisks_Task:
		j.work = func() (types.AnyType, types.BaseMethodFault) { return nil, w.consolidate(vm) }
	default:
		j.work = func() (types.AnyType, types.BaseMethodFault) { return w.runStock(vm, c.method, request) }
	}
	if rule != nil && rule.Fault != disconnect {
		if rule.when(c) == whenTask {
			j.fail = rule.make(c)
		} else {
			j.failAfter = rule.make(c)
		}
	}
	if c.this.Type == "VirtualMachineSnapshot" {
		j.description = "vm.Snapshot." + map[string]string{"RevertToSnapshot_Task": "revert", "RemoveSnapshot_Task": "remove"}[c.method]
	}
	ref, fault := w.tasks.start(j)
	return refResponse{ref}, fault
}

// system is the user for calls of the simulator's own methods.
var system = &simulator.Session{UserSession: types.UserSession{Key: "system", UserName: "system"}, Registry: simulator.NewRegistry()}

// runStock calls the simulator's implementation, at the end of one of our tasks. The VM is locked.
func (w *world) runStock(vm *simulator.VirtualMachine, method string, request interface{}) (types.AnyType, types.BaseMethodFault) {
	if vm.Runtime.Question != nil {
		return nil, &types.QuestionPending{Text: vm.Runtime.Question.Text}
	}
	function := reflect.ValueOf(vm).MethodByName(strings.TrimSuffix(strings.Title(method), "_Task") + "Task")
	if !function.IsValid() {
		return nil, &types.NotSupported{}
	}
	arguments := []reflect.Value{reflect.ValueOf(request)}
	if function.Type().NumIn() == 2 {
		ctx := &simulator.Context{Context: context.Background(), Session: system, Map: simulator.Map, Caller: &vm.Self}
		arguments = append([]reflect.Value{reflect.ValueOf(ctx)}, arguments...)
	}
	body := function.Call(arguments)[0].Interface().(soap.HasFault)
	if fault := body.Fault(); fault != nil {
		return nil, fault.VimFault().(types.BaseMethodFault)
	}
	ref := reflect.ValueOf(body).Elem().FieldByName("Res").Elem().FieldByName("Returnval").Interface().(types.ManagedObjectReference)
	done := simulator.Map.Get(ref).(*simulator.Task)
	forget(done)
	if simulator.Map.Get(vm.Self) != nil { // not destroyed
		w.settle(vm)
	}
	w.adoptAllBut(vm)
	if done.Info.Error != nil {
		return nil, done.Info.Error.Fault
	}
	return done.Info.Result, nil
}

// forget removes the finished task that the simulator created in addition to ours.
func forget(task *simulator.Task) {
	simulator.Map.Remove(task.Self)
	manager := simulator.Map.Get(*serviceContent().TaskManager).(*simulator.TaskManager)
	manager.Lock()
	simulator.RemoveReference(&manager.RecentTask, task.Self)
	manager.Unlock()
}

// adoptAllBut adopts VMs that a clone created; the locked one is already known.
func (w *world) adoptAllBut(locked *simulator.VirtualMachine) {
	w.state(locked)
	w.adoptAll()
}

// afterForeign corrects the state after a call that the simulator itself has handled.
func (w *world) afterForeign(c *call) {
	switch c.method {
	case "CreateVM_Task", "RegisterVM_Task", "ImportVApp":
		w.adoptAll()
	case "RefreshStorageInfo", "MarkAsTemplate", "MarkAsVirtualMachine", "ShutdownGuest":
		if vm := c.target(); vm != nil {
			simulator.Map.WithLock(vm, func() { w.settle(vm) })
		}
	}
}

func serviceContent() types.ServiceContent {
	return simulator.Map.Get(types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"}).(*simulator.ServiceInstance).Content
}

func propertyCollectors() []types.ManagedObjectReference {
	return []types.ManagedObjectReference{serviceContent().PropertyCollector}
}
