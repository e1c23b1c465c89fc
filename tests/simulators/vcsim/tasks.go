// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// recentTasks is the number of tasks that a VM lists, finished ones included (vCenter: those of the last ten minutes).
const recentTasks = 5

// changeSeen is the time until a running task notices that its duration was changed.
const changeSeen = 200 * time.Millisecond

// job is one of our own tasks on a VM.
type job struct {
	vm          *simulator.VirtualMachine
	method      string
	description string
	user        string
	cancelable  bool
	work        func() (types.AnyType, types.BaseMethodFault) // runs with the VM locked, at the end of the task's time
	fail        types.BaseMethodFault                         // instead of the work
	failAfter   types.BaseMethodFault                         // after the work
	task        *simulator.Task
	canceled    chan struct{}
	forgotten   chan struct{} // closed by forget
	undone      bool          // true if the work of a forgotten task is not done
}

// tasks runs one job at a time for each VM.
type tasks struct {
	mu       sync.Mutex
	settings *settings
	running  map[types.ManagedObjectReference]*job   // by VM
	waiting  map[types.ManagedObjectReference][]*job // by VM
	jobs     map[types.ManagedObjectReference]*job   // by task; only those that have not ended
}

func newTasks(s *settings) *tasks {
	return &tasks{
		settings: s,
		running:  map[types.ManagedObjectReference]*job{},
		waiting:  map[types.ManagedObjectReference][]*job{},
		jobs:     map[types.ManagedObjectReference]*job{},
	}
}

// start starts the job, or lets it wait or fail if the VM already has one.
func (t *tasks) start(j *job) (types.ManagedObjectReference, types.BaseMethodFault) {
	busy := t.settings.get().Busy
	vm := j.vm.Self
	t.mu.Lock()
	other := t.running[vm]
	if other != nil && busy == "call" {
		t.mu.Unlock()
		return vm, &types.TaskInProgress{Task: other.task.Self}
	}
	j.canceled, j.forgotten = make(chan struct{}), make(chan struct{})
	j.makeTask()
	t.jobs[j.task.Self] = j
	ref := j.task.Self
	switch {
	case other == nil:
		t.running[vm] = j
	case busy == "queue":
		t.waiting[vm] = append(t.waiting[vm], j)
	}
	t.mu.Unlock()

	simulator.Map.WithLock(j.vm, func() {
		recent := append(append([]types.ManagedObjectReference{}, j.vm.RecentTask...), ref)
		if len(recent) > recentTasks {
			recent = recent[len(recent)-recentTasks:]
		}
		j.vm.RecentTask = recent
		changes.announce()
	})
	switch {
	case other == nil:
		go t.run(j)
	case busy != "queue":
		t.finish(j, nil, &types.TaskInProgress{Task: other.task.Self})
	}
	return ref, nil
}

func (j *job) makeTask() {
	word := strings.TrimSuffix(j.method, "_Task")
	j.task = simulator.CreateTask(j.vm, strings.ToLower(word[:1])+word[1:]+"Task", nil)
	simulator.Map.WithLock(j.task, func() {
		info := &j.task.Info
		info.EntityName = j.vm.Name
		info.Cancelable = j.cancelable
		info.Reason = &types.TaskReasonUser{UserName: j.user}
		info.QueueTime = info.QueueTime.UTC()
		if j.description != "" {
			info.DescriptionId = j.description
		}
	})
}

func (t *tasks) run(j *job) {
	result, fault := t.perform(j)
	// The VM is released before the client is notified: the client's next call must not conflict with a task that has ended.
	t.mu.Lock()
	delete(t.running, j.vm.Self)
	var next *job
	if queue := t.waiting[j.vm.Self]; len(queue) > 0 {
		next, t.waiting[j.vm.Self] = queue[0], queue[1:]
		t.running[j.vm.Self] = next
	}
	t.mu.Unlock()
	t.finish(j, result, fault)
	if next != nil {
		t.run(next)
	}
}

func (t *tasks) perform(j *job) (result types.AnyType, fault types.BaseMethodFault) {
	if !j.sleep(seconds(t.settings.get().QueueTime)) {
		return nil, &types.RequestCanceled{}
	}
	j.change(func(info *types.TaskInfo) {
		now := t.settings.now()
		info.State, info.StartTime = types.TaskInfoStateRunning, &now
	})
	shown := time.Duration(0) // when the progress was reported last
	for begun := time.Now(); !j.isForgotten(); {
		length, passed := t.settings.taskTime(j.method, j.vm.Name), time.Since(begun)
		if passed >= length {
			break
		}
		step := length / 10
		if step < 20*time.Millisecond {
			step = 20 * time.Millisecond
		}
		if passed >= shown+step {
			shown = passed
			percent := int32(passed * 100 / length)
			j.change(func(info *types.TaskInfo) { info.Progress = percent })
		}
		for _, limit := range []time.Duration{length - passed, changeSeen} {
			if step > limit {
				step = limit
			}
		}
		if !j.sleep(step) {
			return nil, &types.RequestCanceled{}
		}
	}
	if j.isForgotten() && j.undone {
		return nil, &types.RequestCanceled{}
	}
	if j.fail != nil {
		return nil, j.fail
	}
	defer func() {
		if problem := recover(); problem != nil {
			fmt.Fprintf(os.Stderr, "panic in %s: %v\n%s", j.method, problem, debug.Stack())
			result, fault = nil, &types.GenericVmConfigFault{Reason: fmt.Sprint(problem)}
		}
	}()
	simulator.Map.WithLock(j.vm, func() { result, fault = j.work() })
	if fault == nil && j.failAfter != nil {
		return nil, j.failAfter
	}
	return result, fault
}

// sleep waits, and reports if the job continues afterwards.
func (j *job) sleep(length time.Duration) bool {
	if length <= 0 {
		select {
		case <-j.canceled:
			return false
		default:
			return true
		}
	}
	select {
	case <-j.canceled:
		return false
	case <-j.forgotten:
		return true
	case <-time.After(length):
		return true
	}
}

func (j *job) isForgotten() bool {
	select {
	case <-j.forgotten:
		return true
	default:
		return false
	}
}

// forget removes all tasks, as a restart of vCenter may. The host does their work, or with undone it does not.
func (t *tasks) forget(undone bool) {
	t.mu.Lock()
	forgotten := t.jobs
	t.jobs = map[types.ManagedObjectReference]*job{}
	t.mu.Unlock()
	for ref, j := range forgotten {
		simulator.Map.Remove(ref)
		simulator.Map.WithLock(j.vm, func() { simulator.RemoveReference(&j.vm.RecentTask, ref) })
		j.undone = undone
		close(j.forgotten)
	}
	changes.announce()
}

// change edits a copy: the old value may be in use by an answer to a client.
func (j *job) change(edit func(*types.TaskInfo)) {
	simulator.Map.WithLock(j.task, func() {
		info := j.task.Info
		edit(&info)
		j.task.Info = info
	})
	changes.announce()
}

func (t *tasks) finish(j *job, result types.AnyType, fault types.BaseMethodFault) {
	t.mu.Lock()
	delete(t.jobs, j.task.Self)
	t.mu.Unlock()
	j.change(func(info *types.TaskInfo) {
		now := t.settings.now()
		info.CompleteTime, info.Progress = &now, 0
		if info.StartTime == nil {
			info.StartTime = &now
		}
		if fault == nil {
			info.State, info.Result = types.TaskInfoStateSuccess, result
			return
		}
		info.State = types.TaskInfoStateError
		info.Error = &types.LocalizedMethodFault{Fault: fault, LocalizedMessage: faultMessage(fault)}
		_, info.Cancelled = fault.(*types.RequestCanceled)
	})
}

// cancel implements CancelTask for our own tasks.
func (t *tasks) cancel(ref types.ManagedObjectReference) (fault types.BaseMethodFault, ours bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j := t.jobs[ref]
	if j == nil {
		if simulator.Map.Get(ref) == nil {
			return &types.ManagedObjectNotFound{Obj: ref}, true
		}
		return &types.InvalidState{}, true // it has already ended
	}
	if !j.cancelable {
		return &types.NotSupported{}, true
	}
	select {
	case <-j.canceled:
	default:
		close(j.canceled)
	}
	return nil, true
}
