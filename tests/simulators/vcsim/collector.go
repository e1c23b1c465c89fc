// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"context"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// propertyCollector replaces the simulator's, which polls for updates four times a second and panics in Fetch of an
// unset property. Retrieval and filters are still the simulator's.
type propertyCollector struct {
	simulator.PropertyCollector
	mu       sync.Mutex
	last     int                  // the number of the last version
	versions map[string]sentState // those that a client may still name
	cancel   context.CancelFunc
	pages    map[string][]types.ObjectContent // remaining objects by token
}

// pageObjects is set by the gate: the simulator itself creates a collector for each session.
var pageObjects = func() int { return 0 }

// keptVersions is the number of versions after which an older one is unknown.
const keptVersions = 16

// losesUpdates is set by the gate.
var losesUpdates = func() bool { return false }

// sentState is the state that a client with a version has, by filter.
type sentState map[types.ManagedObjectReference]sentObjects

// sentObjects are the properties that the client has, by object and path.
type sentObjects map[types.ManagedObjectReference]map[string]interface{}

// settleTime is the time to collect related updates before an answer.
const settleTime = 10 * time.Millisecond

// changes wakes all waits for updates, at any change of any object.
var changes = &changeSignal{channel: make(chan struct{})}

type changeSignal struct {
	mu      sync.Mutex
	channel chan struct{}
}

func (s *changeSignal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.channel
}

func (s *changeSignal) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.channel)
	s.channel = make(chan struct{})
}

// The interface of a handler in the simulator's registry.

func (s *changeSignal) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "SafepointChanges", Value: "changes"}
}
func (s *changeSignal) PutObject(mo.Reference)                            { s.announce() }
func (s *changeSignal) UpdateObject(mo.Reference, []types.PropertyChange) { s.announce() }
func (s *changeSignal) RemoveObject(types.ManagedObjectReference)         { s.announce() }

// FetchResponse has the name of the element in the simulator.
type FetchResponse struct {
	Returnval types.AnyType `xml:"returnval,omitempty,typeattr"`
}

type fetchBody struct {
	Res    *FetchResponse
	Fault_ *soap.Fault
}

func (b *fetchBody) Fault() *soap.Fault { return b.Fault_ }

// Fetch returns one property of one object. The type of the request is in an internal package of govmomi.
func (pc *propertyCollector) Fetch(ctx *simulator.Context, request interface{}) soap.HasFault {
	fields := reflect.ValueOf(request).Elem()
	this := fields.FieldByName("This").Interface().(types.ManagedObjectReference)
	property := fields.FieldByName("Prop").String()
	body := pc.PropertyCollector.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{SpecSet: []types.PropertyFilterSpec{{
		PropSet:   []types.PropertySpec{{Type: this.Type, PathSet: []string{property}}},
		ObjectSet: []types.ObjectSpec{{Obj: this}},
	}}})
	if fault := body.Fault(); fault != nil {
		return &fetchBody{Fault_: fault}
	}
	response := &FetchResponse{}
	for _, object := range body.(*methods.RetrievePropertiesExBody).Res.Returnval.Objects {
		for _, missing := range object.MissingSet {
			return &fetchBody{Fault_: soapFault(missing.Fault.Fault)}
		}
		for _, set := range object.PropSet {
			response.Returnval = set.Val
		}
	}
	return &fetchBody{Res: response}
}

// RetrievePropertiesEx returns the first page, and a token for the next.
func (pc *propertyCollector) RetrievePropertiesEx(ctx *simulator.Context, r *types.RetrievePropertiesEx) soap.HasFault {
	body := pc.PropertyCollector.RetrievePropertiesEx(ctx, r).(*methods.RetrievePropertiesExBody)
	if body.Res != nil {
		result := body.Res.Returnval
		result.Objects, result.Token = pc.page(result.Objects, r.Options.MaxObjects)
	}
	return body
}

// ContinueRetrievePropertiesEx returns the next page.
func (pc *propertyCollector) ContinueRetrievePropertiesEx(r *types.ContinueRetrievePropertiesEx) soap.HasFault {
	pc.mu.Lock()
	left, ok := pc.pages[r.Token]
	delete(pc.pages, r.Token)
	pc.mu.Unlock()
	if !ok {
		return &methods.ContinueRetrievePropertiesExBody{Fault_: soapFault(&types.InvalidArgument{InvalidProperty: "token"})}
	}
	var result types.RetrieveResult
	result.Objects, result.Token = pc.page(left, 0)
	return &methods.ContinueRetrievePropertiesExBody{Res: &types.ContinueRetrievePropertiesExResponse{Returnval: result}}
}

// CancelRetrievePropertiesEx discards the remaining pages.
func (pc *propertyCollector) CancelRetrievePropertiesEx(r *types.CancelRetrievePropertiesEx) soap.HasFault {
	pc.mu.Lock()
	defer pc.mu.Unlock()
	delete(pc.pages, r.Token)
	return &methods.CancelRetrievePropertiesExBody{Res: &types.CancelRetrievePropertiesExResponse{}}
}

func (pc *propertyCollector) page(objects []types.ObjectContent, wanted int32) (first []types.ObjectContent, token string) {
	size := pageObjects()
	if wanted > 0 && (size == 0 || int(wanted) < size) {
		size = int(wanted)
	}
	if size == 0 || len(objects) <= size {
		return objects, ""
	}
	token = uuid.New().String()
	pc.mu.Lock()
	defer pc.mu.Unlock()
	if pc.pages == nil {
		pc.pages = map[string][]types.ObjectContent{}
	}
	pc.pages[token] = objects[size:]
	return objects[:size], token
}

// CreatePropertyCollector creates another collector of this type.
func (pc *propertyCollector) CreatePropertyCollector(ctx *simulator.Context, _ *types.CreatePropertyCollector) soap.HasFault {
	created := &propertyCollector{}
	created.Self.Type = "PropertyCollector"
	ref := ctx.Session.Put(created).Reference()
	return &methods.CreatePropertyCollectorBody{Res: &types.CreatePropertyCollectorResponse{Returnval: ref}}
}

// CreateFilter also wakes a running wait: in vCenter a wait on a collector without filters lasts until one is created
// (vSphere Web Services SDK Programming Guide 8.0, "Property Filters").
func (pc *propertyCollector) CreateFilter(ctx *simulator.Context, r *types.CreateFilter) soap.HasFault {
	pc.mu.Lock()
	body := pc.PropertyCollector.CreateFilter(ctx, r)
	pc.mu.Unlock()
	changes.announce()
	return body
}

// DestroyPropertyCollector also ends a running wait.
func (pc *propertyCollector) DestroyPropertyCollector(ctx *simulator.Context, r *types.DestroyPropertyCollector) soap.HasFault {
	pc.stopWait()
	return pc.PropertyCollector.DestroyPropertyCollector(ctx, r)
}

// CancelWaitForUpdates ends a running wait with RequestCanceled.
func (pc *propertyCollector) CancelWaitForUpdates(*types.CancelWaitForUpdates) soap.HasFault {
	pc.stopWait()
	return &methods.CancelWaitForUpdatesBody{Res: &types.CancelWaitForUpdatesResponse{}}
}

func (pc *propertyCollector) stopWait() {
	pc.mu.Lock()
	defer pc.mu.Unlock()
	if pc.cancel != nil {
		pc.cancel()
	}
}

// WaitForUpdates is WaitForUpdatesEx without a time limit.
func (pc *propertyCollector) WaitForUpdates(ctx *simulator.Context, r *types.WaitForUpdates) soap.HasFault {
	updates, fault := pc.wait(ctx, r.Version, nil)
	body := &methods.WaitForUpdatesBody{Fault_: fault}
	if fault == nil {
		body.Res = &types.WaitForUpdatesResponse{Returnval: *updates}
	}
	return body
}

// WaitForUpdatesEx answers as soon as anything differs from the version that the client names, whatever other waits were told: the answer to
// one of them may be lost.
func (pc *propertyCollector) WaitForUpdatesEx(ctx *simulator.Context, r *types.WaitForUpdatesEx) soap.HasFault {
	var limit *int32
	if r.Options != nil {
		limit = r.Options.MaxWaitSeconds
	}
	updates, fault := pc.wait(ctx, r.Version, limit)
	body := &methods.WaitForUpdatesExBody{Fault_: fault}
	if fault == nil {
		body.Res = &types.WaitForUpdatesExResponse{Returnval: updates}
	}
	return body
}

func (pc *propertyCollector) wait(ctx *simulator.Context, version string, limit *int32) (*types.UpdateSet, *soap.Fault) {
	waiting, cancel := context.WithCancel(context.Background())
	defer cancel()
	var timeUp <-chan time.Time
	if limit != nil {
		timeUp = time.After(time.Duration(*limit) * time.Second)
	}
	pc.mu.Lock()
	pc.cancel = cancel
	before, known := pc.versions[version]
	pc.mu.Unlock()
	if version != "" && !known {
		return nil, soapFault(&types.InvalidCollectorVersion{})
	}
	for last := false; ; {
		changed := changes.next() // before the comparison, so that no change is missed in between
		now, updates, cut, fault := pc.collect(ctx, before)
		switch {
		case fault != nil:
			return nil, fault
		case len(updates) > 0 && version != "" && losesUpdates():
			before = now
			pc.store(version, now)
		case len(updates) > 0 || version == "":
			return &types.UpdateSet{Version: pc.store("", now), FilterSet: updates, Truncated: cut}, nil
		}
		if last {
			return nil, nil
		}
		select {
		case <-waiting.Done():
			return nil, soapFault(&types.RequestCanceled{})
		case <-timeUp:
			last = true
		case <-changed:
			if !validSession(ctx.Session.Key) {
				denied := types.NoPermission{Object: pc.Self, PrivilegeId: "System.View"}
				return nil, soapFault(&types.NotAuthenticated{NoPermission: denied})
			}
			time.Sleep(settleTime)
		}
	}
}

// store keeps the state of a version, or of a new one, and returns its name.
func (pc *propertyCollector) store(version string, state sentState) string {
	pc.mu.Lock()
	defer pc.mu.Unlock()
	if version == "" {
		pc.last++
		version = strconv.Itoa(pc.last)
		delete(pc.versions, strconv.Itoa(pc.last-keptVersions))
	}
	if pc.versions == nil {
		pc.versions = map[string]sentState{}
	}
	pc.versions[version] = state
	return version
}

// collect compares all filters with the state that the client has, and returns its new state. The rest of a large answer follows in the next one.
func (pc *propertyCollector) collect(ctx *simulator.Context, before sentState) (now sentState, updates []types.PropertyFilterUpdate, cut *bool, fault *soap.Fault) {
	pc.mu.Lock()
	defer pc.mu.Unlock()
	now = sentState{}
	for _, ref := range append([]types.ManagedObjectReference{}, pc.Filter...) {
		filter, ok := ctx.Session.Get(ref).(*simulator.PropertyFilter)
		if !ok {
			continue
		}
		spec := filter.Spec
		spec.ReportMissingObjectsInResults = types.NewBool(true) // a deleted object is an update, not a fault
		body := pc.PropertyCollector.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{SpecSet: []types.PropertyFilterSpec{spec}})
		if fault := body.Fault(); fault != nil {
			return nil, nil, nil, fault
		}
		seen := sentObjects{}
		for _, object := range body.(*methods.RetrievePropertiesExBody).Res.Returnval.Objects {
			seen[object.Obj] = map[string]interface{}{}
			for _, property := range object.PropSet {
				seen[object.Obj][property.Name] = clone(property.Val)
			}
		}
		objects := difference(before[ref], seen)
		if size := pageObjects(); size > 0 && len(objects) > size {
			for _, later := range objects[size:] {
				if old, known := before[ref][later.Obj]; known {
					seen[later.Obj] = old
				} else {
					delete(seen, later.Obj)
				}
			}
			objects, cut = objects[:size], types.NewBool(true)
		}
		if len(objects) > 0 {
			updates = append(updates, types.PropertyFilterUpdate{Filter: ref, ObjectSet: objects})
		}
		now[ref] = seen
	}
	return now, updates, cut, nil
}

func difference(before, now sentObjects) []types.ObjectUpdate {
	var objects []types.ObjectUpdate
	for ref, properties := range now {
		old, known := before[ref]
		update := types.ObjectUpdate{Obj: ref, Kind: types.ObjectUpdateKindModify}
		if !known {
			update.Kind = types.ObjectUpdateKindEnter
		}
		for name, value := range properties {
			if last, ok := old[name]; !ok || !reflect.DeepEqual(last, value) {
				change := types.PropertyChange{Name: name, Op: types.PropertyChangeOpAssign, Val: value}
				update.ChangeSet = append(update.ChangeSet, change)
			}
		}
		for name := range old {
			if _, ok := properties[name]; !ok {
				update.ChangeSet = append(update.ChangeSet, types.PropertyChange{Name: name, Op: types.PropertyChangeOpAssign})
			}
		}
		if !known || len(update.ChangeSet) > 0 {
			objects = append(objects, update)
		}
	}
	for ref := range before {
		if _, ok := now[ref]; !ok {
			objects = append(objects, types.ObjectUpdate{Obj: ref, Kind: types.ObjectUpdateKindLeave})
		}
	}
	return objects
}
