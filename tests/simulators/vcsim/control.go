// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// newControl is the HTTP endpoint through which tests change the running server, with JSON requests and answers.
//
//	GET /state                    settings, faults, counters, logins
//	POST /settings                settingValues, only those to change
//	POST /faults, DELETE /faults  add a list of faultRule, remove all
//	GET /counters, DELETE         read and reset, reset
//	DELETE /sessions              all logins expire
//	DELETE /tasks                 {undone}: vCenter forgets all tasks that have not ended
//	POST /barrier                 {method, calls}: hold the next calls until this many have arrived
//	POST /outage, GET /outage     outage: the fault of the n-th request; the number of requests so far
//	POST /vms                     a list of newVM
//	GET /vms?vm=, PATCH /vms?vm=  read, set knobs
//	PATCH /datastores?name=       {capacity_bytes, free_bytes}
func newControl(g *gate) http.Handler {
	routes := map[string]func(body []byte, r *http.Request) (interface{}, error){
		"GET /state": func([]byte, *http.Request) (interface{}, error) {
			return map[string]interface{}{
				"settings": g.settings.get(), "faults": g.faults.list(), "counters": g.counters, "logins": g.sessions.names(),
			}, nil
		},
		"GET /counters":    func([]byte, *http.Request) (interface{}, error) { return g.counters, nil },
		"DELETE /counters": func([]byte, *http.Request) (interface{}, error) { g.counters.reset(); return nil, nil },
		"POST /settings":   func(body []byte, _ *http.Request) (interface{}, error) { return nil, g.settings.update(body) },
		"DELETE /faults":   func([]byte, *http.Request) (interface{}, error) { g.faults.clear(); return nil, nil },
		"DELETE /sessions": func([]byte, *http.Request) (interface{}, error) { g.sessions.expire(); return nil, nil },
		"DELETE /tasks": func(body []byte, _ *http.Request) (interface{}, error) {
			var wanted struct {
				Undone bool `json:"undone"`
			}
			err := strictUnmarshal(body, &wanted)
			g.world.tasks.forget(wanted.Undone)
			return nil, err
		},
		"POST /faults": func(body []byte, _ *http.Request) (interface{}, error) {
			var rules []*faultRule
			if err := strictUnmarshal(body, &rules); err != nil {
				return nil, err
			}
			for _, rule := range rules {
				if err := rule.check(); err != nil {
					return nil, err
				}
			}
			g.faults.add(rules...)
			return nil, nil
		},
		"POST /barrier": func(body []byte, _ *http.Request) (interface{}, error) {
			var wanted struct {
				Method string `json:"method"`
				Calls  int    `json:"calls"`
			}
			err := strictUnmarshal(body, &wanted)
			g.barrier.set(wanted.Method, wanted.Calls)
			return nil, err
		},
		"POST /outage": func(body []byte, _ *http.Request) (interface{}, error) { return nil, g.outage.set(body) },
		"GET /outage":  func([]byte, *http.Request) (interface{}, error) { return g.outage.get(), nil },
		"POST /vms":    g.makeVMs,
		"GET /vms": func(_ []byte, r *http.Request) (interface{}, error) {
			vm, err := findVM(r.URL.Query().Get("vm"))
			if err != nil {
				return nil, err
			}
			return describe(vm), nil
		},
		"PATCH /vms": func(body []byte, r *http.Request) (interface{}, error) {
			vm, err := findVM(r.URL.Query().Get("vm"))
			if err != nil {
				return nil, err
			}
			var k knobs
			if err = strictUnmarshal(body, &k); err != nil {
				return nil, err
			}
			simulator.Map.WithLock(vm, func() { err = g.world.turn(vm, &k) })
			return describe(vm), err
		},
		"PATCH /datastores": func(body []byte, r *http.Request) (interface{}, error) {
			return nil, patchDatastore(r.URL.Query().Get("name"), body)
		},
	}
	stock := map[string]bool{"GET /counters": true, "DELETE /counters": true, "POST /vms": true, "GET /vms": true}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Method + " " + r.URL.Path
		route := routes[key]
		if route == nil || g.stock && !stock[key] {
			http.Error(w, "there is no "+key+" here", http.StatusNotFound)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer, err := route(body, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	})
}

func (g *gate) makeVMs(body []byte, _ *http.Request) (interface{}, error) {
	var wanted []*newVM
	if err := strictUnmarshal(body, &wanted); err != nil {
		return nil, err
	}
	rows := []interface{}{}
	for _, one := range wanted {
		vm, err := makeVM(g.service, one)
		if err != nil {
			return nil, fmt.Errorf("%s/%s: %w", one.Folder, one.Name, err)
		}
		if !g.stock {
			simulator.Map.WithLock(vm, func() {
				g.world.adopt(vm)
				err = g.world.turn(vm, &one.knobs)
			})
			if err != nil {
				return nil, err
			}
		}
		rows = append(rows, describe(vm))
	}
	return rows, nil
}

func patchDatastore(name string, body []byte) error {
	wanted := struct {
		Capacity int64 `json:"capacity_bytes"`
		Free     int64 `json:"free_bytes"`
	}{Capacity: 1 << 40, Free: 1 << 39}
	if err := strictUnmarshal(body, &wanted); err != nil {
		return err
	}
	for _, entity := range simulator.Map.All("Datastore") {
		if datastore := entity.(*simulator.Datastore); datastore.Name == name {
			setSpace(datastore, wanted.Capacity, wanted.Free)
			return nil
		}
	}
	return fmt.Errorf("there is no datastore %s", name)
}

// describe returns the real state of a VM for tests, without the API.
func describe(vm *simulator.VirtualMachine) interface{} {
	row := map[string]interface{}{}
	simulator.Map.WithLock(vm, func() {
		snapshots := []interface{}{}
		if vm.Snapshot != nil {
			walk(vm.Snapshot.RootSnapshotList, func(node *types.VirtualMachineSnapshotTree) {
				current := vm.Snapshot.CurrentSnapshot
				snapshots = append(snapshots, map[string]interface{}{
					"id": node.Id, "moid": node.Snapshot.Value, "name": node.Name, "description": node.Description,
					"state": node.State, "quiesced": node.Quiesced, "current": current != nil && *current == node.Snapshot,
				})
			})
		}
		data := ""
		for _, option := range vm.Config.ExtraConfig {
			if value := option.GetOptionValue(); value.Key == dataKey {
				data, _ = value.Value.(string)
			}
		}
		for key, value := range map[string]interface{}{
			"moid": vm.Self.Value, "name": vm.Name, "path": inventoryPath(vm), "power": vm.Runtime.PowerState, "data": data,
			"uuid": vm.Config.Uuid, "instance_uuid": vm.Config.InstanceUuid, "cpus": vm.Config.Hardware.NumCPU,
			"memory_mb": vm.Config.Hardware.MemoryMB, "annotation": vm.Config.Annotation, "snapshots": snapshots,
		} {
			row[key] = value
		}
	})
	return row
}
