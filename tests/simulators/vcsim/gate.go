// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// gate handles every request before the simulator's own service.
type gate struct {
	service  *simulator.Service
	stock    bool
	users    map[string]*user
	world    *world
	faults   *faultRules
	settings *settings
	counters *counters
	barrier  barrier
	sessions sessions
	outage   outage
	line     *line
}

func newGate(service *simulator.Service, stock bool) *gate {
	s := newSettings()
	g := &gate{service: service, stock: stock, faults: &faultRules{}, settings: s, counters: &counters{}}
	g.world = newWorld(s, g.faults)
	g.sessions.users = map[string]*user{}
	g.barrier.settings = s
	validSession = g.sessions.valid
	pageObjects = func() int { return s.get().PageObjects }
	losesUpdates = func() bool { return s.get().LoseUpdates }
	return g
}

// validSession is for objects that govmomi creates itself, without the gate.
var validSession = func(string) bool { return true }

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/sdk/vimServiceVersions.xml":
		g.counters.request("GET vimServiceVersions.xml")
		g.service.ServiceVersions(w, r)
	case r.URL.Path == "/sdk" || r.URL.Path == "/sdk/vimService":
		r.URL.Path = "/sdk"
		g.serveCall(w, r)
	default:
		g.counters.request(r.Method + " " + r.URL.Path)
		http.NotFound(w, r)
	}
}

func (g *gate) serveCall(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.counters.received(len(body))
	c, err := parseCall(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.counters.request(c.method)
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	g.serveThroughOutage(w, r, c)
}

func (g *gate) doCall(w http.ResponseWriter, r *http.Request, c *call) {
	g.settings.delayCall(c.method)
	if g.stock {
		g.service.ServeSDK(w, r)
		return
	}

	if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
		if c.user = g.sessions.user(cookie.Value); c.user != nil {
			c.session = cookie.Value
		} else {
			r.Header.Del("Cookie") // an expired session is the same as none
		}
	}
	if c.user == nil && !withoutSession(c) {
		writeFault(w, &types.NotAuthenticated{NoPermission: types.NoPermission{Object: c.this, PrivilegeId: "System.View"}})
		return
	}
	if fault := g.mayCall(c); fault != nil {
		writeFault(w, fault)
		return
	}
	g.barrier.wait(c.method)
	rule := g.faults.match(c)
	if rule != nil && rule.when(c) == whenCall {
		if rule.Fault == disconnect {
			panic(http.ErrAbortHandler) // closes the connection without an answer
		}
		writeFault(w, rule.make(c))
		return
	}
	if rule == nil || rule.when(c) != whenAfter || c.makesTask() && rule.Fault != disconnect {
		g.answer(w, r, c, rule)
		return
	}
	g.answer(discard{http.Header{}}, r, c, rule) // the work is done, and the answer is lost
	if rule.Fault == disconnect {
		panic(http.ErrAbortHandler)
	}
	writeFault(w, rule.make(c))
}

// withoutSession reports if vCenter answers the call before a login.
func withoutSession(c *call) bool {
	switch c.method {
	case "RetrieveServiceContent", "Login":
		return true
	case "Fetch":
		return c.this.Type == "ServiceInstance" || c.this.Type == "SessionManager"
	}
	return false
}

// answer passes the call to its handler.
func (g *gate) answer(w http.ResponseWriter, r *http.Request, c *call, rule *faultRule) {
	switch c.method {
	case "Login":
		g.login(w, r, c)
		return
	case "Logout":
		g.service.ServeSDK(w, r)
		g.sessions.end(c.session)
		return
	case "LoginByToken", "LoginExtensionByCertificate", "CloneSession":
		writeFault(w, &types.InvalidLogin{})
		return
	}
	response, fault, ours := g.world.answer(c, rule)
	switch {
	case fault != nil:
		writeFault(w, fault)
	case ours:
		writeResponse(w, c.method, response)
	default:
		g.service.ServeSDK(w, r)
		g.world.afterForeign(c)
	}
}

func (g *gate) login(w http.ResponseWriter, r *http.Request, c *call) {
	request, err := c.decode()
	login, ok := request.(*types.Login)
	if err != nil || !ok {
		http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
		return
	}
	who := g.users[login.UserName]
	if who == nil || who.password != login.Password {
		writeFault(w, &types.InvalidLogin{})
		return
	}
	g.service.ServeSDK(w, r)
	for _, cookie := range (&http.Response{Header: w.Header()}).Cookies() {
		if cookie.Name == soap.SessionCookieName {
			g.sessions.begin(cookie.Value, who)
		}
	}
}

// discard is a response writer for an answer that must be lost.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// sessions are the logins by cookie value.
type sessions struct {
	sync.Mutex
	users map[string]*user
}

func (s *sessions) user(key string) *user {
	s.Lock()
	defer s.Unlock()
	return s.users[key]
}

func (s *sessions) valid(key string) bool { return s.user(key) != nil }

func (s *sessions) begin(key string, who *user) {
	s.Lock()
	defer s.Unlock()
	s.users[key] = who
}

func (s *sessions) end(key string) {
	s.Lock()
	delete(s.users, key)
	s.Unlock()
	changes.announce()
}

// expire ends all sessions; running waits for updates end at once.
func (s *sessions) expire() {
	s.Lock()
	s.users = map[string]*user{}
	s.Unlock()
	changes.announce()
}

func (s *sessions) names() []string {
	s.Lock()
	defer s.Unlock()
	names := []string{}
	for _, who := range s.users {
		names = append(names, who.name)
	}
	return names
}

// barrier holds the next calls of some methods until a number of them has arrived, to provoke a race.
type barrier struct {
	sync.Mutex
	settings *settings
	method   string
	missing  int
	open     chan struct{}
}

// set replaces the barrier; zero calls remove it.
func (b *barrier) set(method string, calls int) {
	b.Lock()
	defer b.Unlock()
	if b.missing > 0 {
		close(b.open)
	}
	b.method, b.missing, b.open = method, calls, make(chan struct{})
}

func (b *barrier) wait(method string) {
	b.Lock()
	if b.missing == 0 || !globMatch(b.method, method) {
		b.Unlock()
		return
	}
	open := b.open
	if b.missing--; b.missing == 0 {
		close(open)
	}
	b.Unlock()
	select {
	case <-open:
	case <-time.After(30 * time.Second): // the other call never arrived
	}
}
