// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"encoding/json"
	"sync"
	"time"
)

// settings can be changed by tests while the server runs. Times are in seconds, names of methods are globs.
type settings struct {
	mu      sync.Mutex
	unmuted chan struct{} // closed while the server answers
	values  settingValues
}

type settingValues struct {
	TaskTime  float64            `json:"task_time"`
	TaskTimes map[string]float64 `json:"task_times"`
	// The same by globs of VM names, which take precedence over methods. A change also applies to running tasks.
	VMTaskTimes map[string]float64 `json:"vm_task_times"`
	// The time that a task is queued before it runs.
	QueueTime float64 `json:"queue_time"`
	// The handling of a second task on a VM: "task" ends it with TaskInProgress, "call" raises this fault, "queue" lets it wait.
	Busy string `json:"busy"`
	// The server accepts connections and requests, but answers none.
	Mute bool `json:"mute"`
	// Additional delay of calls by method.
	CallDelays map[string]float64 `json:"call_delays"`
	// The power state after a revert with suppressPowerOn to a snapshot with the memory of a running VM.
	SuppressedPower string `json:"suppressed_power"`
	// The difference between the server's clock and this machine's.
	ClockOffset float64 `json:"clock_offset"`
	// The size of the delta of each disk that a new snapshot creates, and of the snapshot's own file.
	DeltaBytes int64 `json:"delta_bytes"`
	DataBytes  int64 `json:"data_bytes"`
	// The maximum depth of a chain of snapshots.
	Levels int `json:"levels"`
	// The maximum number of objects in one answer of the PropertyCollector, 0 for no limit. A real vCenter has such a limit too.
	PageObjects int `json:"page_objects"`
	// Changes since a version are not reported, as if the client had them already; without a version the whole state is.
	LoseUpdates bool `json:"lose_updates"`
}

func newSettings() *settings {
	s := &settings{unmuted: make(chan struct{})}
	close(s.unmuted)
	s.values = settingValues{
		Busy: "task", SuppressedPower: "poweredOff", DeltaBytes: 16 << 20, DataBytes: 32 << 10, Levels: 32,
		TaskTimes: map[string]float64{}, VMTaskTimes: map[string]float64{}, CallDelays: map[string]float64{},
	}
	return s
}

// update sets the fields in the JSON and keeps all others; a map is replaced as a whole.
func (s *settings) update(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	values := s.values
	values.TaskTimes, values.VMTaskTimes, values.CallDelays = nil, nil, nil
	if err := strictUnmarshal(text, &values); err != nil {
		return err
	}
	if values.TaskTimes == nil {
		values.TaskTimes = s.values.TaskTimes
	}
	if values.VMTaskTimes == nil {
		values.VMTaskTimes = s.values.VMTaskTimes
	}
	if values.CallDelays == nil {
		values.CallDelays = s.values.CallDelays
	}
	s.mute(values.Mute)
	s.values = values
	return nil
}

func (s *settings) setMute(mute bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute(mute)
	s.values.Mute = mute
}

// mute makes calls wait, or continue. The settings are locked.
func (s *settings) mute(mute bool) {
	if mute == s.values.Mute {
		return
	}
	if mute {
		s.unmuted = make(chan struct{})
	} else {
		close(s.unmuted)
	}
}

func (s *settings) get() settingValues {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values
}

func (s *settings) whileMute() {
	s.mu.Lock()
	unmuted := s.unmuted
	s.mu.Unlock()
	<-unmuted
}

func (s *settings) delayCall(method string) {
	s.whileMute()
	for pattern, delay := range s.get().CallDelays {
		if globMatch(pattern, method) {
			time.Sleep(seconds(delay))
		}
	}
}

func (s *settings) taskTime(method, vm string) time.Duration {
	values := s.get()
	for pattern, time := range values.VMTaskTimes {
		if globMatch(pattern, vm) {
			return seconds(time)
		}
	}
	if exact, ok := values.TaskTimes[method]; ok {
		return seconds(exact)
	}
	for pattern, time := range values.TaskTimes {
		if globMatch(pattern, method) {
			return seconds(time)
		}
	}
	return seconds(values.TaskTime)
}

func (s *settings) now() time.Time {
	return time.Now().Add(seconds(s.get().ClockOffset)).UTC()
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// counters count the requests of clients.
type counters struct {
	mu sync.Mutex
	counts
}

type counts struct {
	Methods     map[string]int `json:"methods"`
	Requests    int            `json:"requests"` // SOAP only
	Connections int            `json:"connections"`
	BytesIn     int            `json:"bytes_in"`  // of the SOAP envelopes
	BytesOut    int            `json:"bytes_out"` // all bytes, TLS included
}

func (c *counters) request(method string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Methods == nil {
		c.Methods = map[string]int{}
	}
	c.Methods[method]++
}

func (c *counters) connection() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Connections++
}

func (c *counters) received(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Requests++
	c.BytesIn += n
}

func (c *counters) sent(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.BytesOut += n
}

func (c *counters) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts = counts{}
}

func (c *counters) MarshalJSON() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Methods == nil {
		c.Methods = map[string]int{}
	}
	return json.Marshal(c.counts)
}
