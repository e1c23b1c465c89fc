// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"path"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

const (
	whenCall   = "call"  // the call raises it, nothing was done
	whenTask   = "task"  // the task ends with it, nothing was done
	whenAfter  = "after" // the work is done, and then the task ends with it
	disconnect = "Disconnect"
)

// faultRule raises a fault for the calls that match it. A rule for *QuiesceFault only matches calls with quiesce, one for
// MemorySnapshot* only calls with memory. "Disconnect" is not a fault: the connection is closed instead.
type faultRule struct {
	Method  string `json:"method"`
	VM      string `json:"vm"`
	Fault   string `json:"fault"`
	Nth     int    `json:"nth,omitempty"` // only the n-th call; 0 is every call
	When    string `json:"when"`          // empty: the default of the fault
	Message string `json:"message,omitempty"`
	Calls   int    `json:"calls"` // number of matches so far
}

// check sets the defaults.
func (r *faultRule) check() error {
	if r.Method == "" {
		r.Method = "*"
	}
	if r.VM == "" {
		r.VM = "*"
	}
	if r.Fault == disconnect {
		if r.When == "" {
			r.When = whenCall
		}
		return nil
	}
	if newFault(r.Fault) == nil {
		return fmt.Errorf("%q is no fault that vSphere has", r.Fault)
	}
	switch r.When {
	case "", whenCall, whenTask, whenAfter:
		return nil
	}
	return fmt.Errorf("when is %s, %s or %s", whenCall, whenTask, whenAfter)
}

// when returns the stage at which the rule applies to this call.
func (r *faultRule) when(c *call) string {
	_, runtime := newFault(r.Fault).(types.BaseRuntimeFault)
	switch {
	case r.When == whenAfter, r.When == whenCall:
		return r.When
	case !c.makesTask():
		return whenCall
	case runtime && r.When == "":
		return whenCall // vSphere declares runtime faults for any method: they come before there is a task
	}
	return whenTask
}

func (r *faultRule) fits(c *call) bool {
	if !globMatch(r.Method, c.method) {
		return false
	}
	vm := c.target()
	if vm == nil && r.VM != "*" || vm != nil && !globMatch(r.VM, vm.Name) {
		return false
	}
	asks, ok := snapshotRequest(c)
	switch {
	case !ok:
		return true
	case strings.HasSuffix(r.Fault, "QuiesceFault"):
		return asks.quiesce
	case strings.HasPrefix(r.Fault, "MemorySnapshot"):
		return asks.memory
	}
	return true
}

// make returns the fault, with the fields that a client needs to parse it.
func (r *faultRule) make(c *call) types.BaseMethodFault {
	fault := newFault(r.Fault)
	object := c.this
	if vm := c.target(); vm != nil {
		object = vm.Self
	}
	fillFault(reflect.ValueOf(fault).Elem(), object)
	if r.Message != "" {
		fault.GetMethodFault().FaultMessage = []types.LocalizableMessage{{Key: "safepoint.test", Message: r.Message}}
	}
	return fault
}

func newFault(name string) types.BaseMethodFault {
	kind, ok := types.TypeFunc()(name)
	if !ok {
		return nil
	}
	fault, _ := reflect.New(kind).Interface().(types.BaseMethodFault)
	return fault
}

var refType = reflect.TypeOf(types.ManagedObjectReference{})

func fillFault(value reflect.Value, object types.ManagedObjectReference) {
	for i := 0; i < value.NumField(); i++ {
		field := value.Field(i)
		name := value.Type().Field(i).Name
		switch {
		case field.Type() == refType && name == "Task":
			field.Set(reflect.ValueOf(types.ManagedObjectReference{Type: "Task", Value: "task-0"}))
		case field.Type() == refType:
			field.Set(reflect.ValueOf(object))
		case name == "PrivilegeId":
			field.SetString("System.View")
		case name == "ExistingState":
			field.SetString(string(types.VirtualMachinePowerStatePoweredOff))
		case field.Kind() == reflect.String && field.String() == "" && name != "RequestedState":
			field.SetString("unknown")
		case field.Kind() == reflect.Struct && value.Type().Field(i).Anonymous:
			fillFault(field, object)
		}
	}
}

type faultRules struct {
	sync.Mutex
	rules []*faultRule
}

func (f *faultRules) add(rules ...*faultRule) {
	f.Lock()
	defer f.Unlock()
	f.rules = append(f.rules, rules...)
}

func (f *faultRules) clear() {
	f.Lock()
	defer f.Unlock()
	f.rules = nil
}

func (f *faultRules) list() []faultRule {
	f.Lock()
	defer f.Unlock()
	list := []faultRule{}
	for _, rule := range f.rules {
		list = append(list, *rule)
	}
	return list
}

// match counts the call for every matching rule, and returns the first that applies.
func (f *faultRules) match(c *call) *faultRule {
	f.Lock()
	defer f.Unlock()
	var found *faultRule
	for _, rule := range f.rules {
		if !rule.fits(c) {
			continue
		}
		rule.Calls++
		if found == nil && (rule.Nth == 0 || rule.Nth == rule.Calls) {
			found = rule
		}
	}
	return found
}

// faultFlags are the rules of the command line.
type faultFlags []*faultRule

func (f *faultFlags) String() string { return "" }

func (f *faultFlags) Set(text string) error {
	words := strings.Split(text, ":")
	if len(words) < 3 || len(words) > 4 {
		return fmt.Errorf("%q is not method:vm-glob:FaultType[:nth]", text)
	}
	rule := &faultRule{Method: words[0], VM: words[1], Fault: words[2]}
	if len(words) == 4 {
		var err error
		if rule.Nth, err = strconv.Atoi(words[3]); err != nil {
			return err
		}
	}
	*f = append(*f, rule)
	return rule.check()
}

func globMatch(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// faultMessages are vCenter's English texts that clients show; all other faults get a similar text.
var faultMessages = map[string]string{
	"ApplicationQuiesceFault": "An error occurred while quiescing the virtual machine. The custom quiescing script failed.",
	"FilesystemQuiesceFault": "An error occurred while saving the snapshot: " +
		"Failed to quiesce the virtual machine. See the virtual machine's event log for details.",
	"InvalidLogin": "Cannot complete login due to an incorrect user name or password.",
	"InvalidState": "The operation is not allowed in the current state.",
	"MemorySnapshotOnIndependentDisk": "Cannot take a memory snapshot, since the virtual machine is configured with " +
		"independent disks.",
	"MethodDisabled":        "The method is disabled by 'another solution'.",
	"NoPermission":          "Permission to perform this operation was denied.",
	"NotAuthenticated":      "The session is not authenticated.",
	"NotSupported":          "The operation is not supported on the object.",
	"RequestCanceled":       "The task was canceled by a user.",
	"RestrictedVersion":     "Current license or ESXi version prohibits execution of the requested operation.",
	"TaskInProgress":        "Another task is already in progress.",
	"TooManySnapshotLevels": "Snapshot hierarchy is too deep.",
}

func faultMessage(fault types.BaseMethodFault) string {
	if messages := fault.GetMethodFault().FaultMessage; len(messages) > 0 {
		return messages[0].Message
	}
	switch fault := fault.(type) {
	case *types.InvalidName:
		return fmt.Sprintf("The name %q is invalid.", fault.Name)
	case *types.InvalidPowerState:
		return fmt.Sprintf("The attempted operation cannot be performed in the current state (%s).", fault.ExistingState)
	case *types.ManagedObjectNotFound:
		return fmt.Sprintf("The object 'vim.%s:%s' has already been deleted or has not been completely created",
			fault.Obj.Type, fault.Obj.Value)
	case *types.NoDiskSpace:
		return fmt.Sprintf("Insufficient disk space on datastore '%s'.", fault.Datastore)
	}
	name := reflect.TypeOf(fault).Elem().Name()
	if message, ok := faultMessages[name]; ok {
		return message
	}
	return fmt.Sprintf("The operation failed: %s.", name)
}
