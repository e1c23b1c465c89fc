// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// user can log in. privileges nil: all privileges.
type user struct {
	name       string
	password   string
	privileges map[string]bool
}

func (u *user) may(privilege string) bool {
	return u.privileges == nil || u.privileges[privilege] || strings.HasPrefix(privilege, "System.")
}

// makeUsers creates users with the same password:
// readonly@ can read everything, creator@ can also create snapshots, operator@ has all privileges for snapshots.
func makeUsers(administrator, password string) map[string]*user {
	users := map[string]*user{administrator: {name: administrator, password: password}}
	state := "VirtualMachine.State."
	for name, privileges := range map[string][]string{
		"readonly@vsphere.local": {},
		"creator@vsphere.local":  {state + "CreateSnapshot"},
		"operator@vsphere.local": {
			state + "CreateSnapshot", state + "RemoveSnapshot", state + "RenameSnapshot", state + "RevertToSnapshot", "Global.CancelTask",
		},
	} {
		set := map[string]bool{}
		for _, privilege := range privileges {
			set[privilege] = true
		}
		users[name] = &user{name: name, password: password, privileges: set}
	}
	return users
}

// neededFor has the privilege for each method, from the API reference of vSphere.
var neededFor = map[string]string{
	"CancelTask":                   "Global.CancelTask",
	"CloneVM_Task":                 "VirtualMachine.Provisioning.Clone",
	"ConsolidateVMDisks_Task":      "VirtualMachine.State.RemoveSnapshot",
	"CreateSnapshot_Task":          "VirtualMachine.State.CreateSnapshot",
	"CreateSnapshotEx_Task":        "VirtualMachine.State.CreateSnapshot",
	"Destroy_Task":                 "VirtualMachine.Inventory.Delete",
	"PowerOffVM_Task":              "VirtualMachine.Interact.PowerOff",
	"PowerOnVM_Task":               "VirtualMachine.Interact.PowerOn",
	"ReconfigVM_Task":              "VirtualMachine.Config.Settings",
	"RemoveAllSnapshots_Task":      "VirtualMachine.State.RemoveSnapshot",
	"RemoveSnapshot_Task":          "VirtualMachine.State.RemoveSnapshot",
	"RenameSnapshot":               "VirtualMachine.State.RenameSnapshot",
	"ResetVM_Task":                 "VirtualMachine.Interact.Reset",
	"RevertToCurrentSnapshot_Task": "VirtualMachine.State.RevertToSnapshot",
	"RevertToSnapshot_Task":        "VirtualMachine.State.RevertToSnapshot",
	"ShutdownGuest":                "VirtualMachine.Interact.PowerOff",
	"SuspendVM_Task":               "VirtualMachine.Interact.Suspend",
}

// mayCall returns NoPermission for a call without the privilege, or nil.
func (g *gate) mayCall(c *call) types.BaseMethodFault {
	if c.user == nil || c.user.privileges == nil {
		return nil
	}
	privilege := neededFor[c.method]
	if privilege == "" {
		if !strings.HasSuffix(c.method, "_Task") {
			return nil
		}
		privilege = "Global.Unknown" // any other change
	}
	if c.user.may(privilege) {
		return nil
	}
	object := c.this
	if vm := c.target(); vm != nil {
		object = vm.Self
	}
	return &types.NoPermission{Object: object, PrivilegeId: privilege}
}

type entityPrivileges struct {
	Returnval []types.EntityPrivilege `xml:"returnval"`
}

type userPrivileges struct {
	Returnval []types.UserPrivilegeResult `xml:"returnval"`
}

// privilegesOf returns the privileges of the calling user, whatever session or name is given: clients only ask about themselves.
func privilegesOf(c *call) (interface{}, types.BaseMethodFault) {
	request, err := c.decode()
	if err != nil {
		return nil, &types.InvalidRequest{}
	}
	switch request := request.(type) {
	case *types.HasPrivilegeOnEntities:
		var answer entityPrivileges
		for _, entity := range request.Entity {
			row := types.EntityPrivilege{Entity: entity}
			for _, privilege := range request.PrivId {
				row.PrivAvailability = append(row.PrivAvailability,
					types.PrivilegeAvailability{PrivId: privilege, IsGranted: c.user.may(privilege)})
			}
			answer.Returnval = append(answer.Returnval, row)
		}
		return answer, nil
	case *types.FetchUserPrivilegeOnEntities:
		var all []string
		for _, known := range simulator.Map.Get(c.this).(*simulator.AuthorizationManager).PrivilegeList {
			if c.user.may(known.PrivId) {
				all = append(all, known.PrivId)
			}
		}
		var answer userPrivileges
		for _, entity := range request.Entities {
			answer.Returnval = append(answer.Returnval, types.UserPrivilegeResult{Entity: entity, Privileges: all})
		}
		return answer, nil
	}
	return nil, &types.InvalidRequest{}
}
