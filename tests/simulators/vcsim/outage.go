// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// The kinds of outage: the fate of the n-th request, and of the server after it.
const (
	outageGone          = "gone"        // all connections are reset, and new ones refused, for some seconds
	outageLost          = "lost"        // the work is done, and the connection closed without an answer
	outageLostBefore    = "lost_before" // the connection is closed, and nothing is done
	outageGateway       = "502"         // the work is done, and a proxy answers 502
	outageGatewayBefore = "502_before"  // a proxy answers 502, and nothing is done
	outageTimeout       = "504"         // a proxy answers 504 at once, and the work is done some seconds later
	outageTimeoutBefore = "504_before"  // a proxy answers 504, and nothing is done
	outageSilent        = "silent"      // this and all later requests get no answer, until the outage is replaced

	// The work is done, and the answer is unusable.
	outageNull  = "null"  // an answer without a value
	outageShape = "shape" // an answer whose value has the wrong format
	outageHalf  = "half"  // the first half of the answer, as if it were complete
	outageHuge  = "huge"  // an answer without end, until the client gives up
)

// outage applies to the n-th SOAP request with a matching method, counted since it was set.
type outage struct {
	sync.Mutex
	Kind    string  `json:"kind"`
	Nth     int     `json:"nth"`
	Method  string  `json:"method"`
	Seconds float64 `json:"seconds"`
	Seen    int     `json:"seen"`
}

// set replaces the outage; without a kind it removes it.
func (o *outage) set(text []byte) error {
	wanted := struct {
		Kind    string  `json:"kind"`
		Nth     int     `json:"nth"`
		Method  string  `json:"method"`
		Seconds float64 `json:"seconds"`
	}{Nth: 1, Method: "*", Seconds: 2}
	if err := strictUnmarshal(text, &wanted); err != nil {
		return err
	}
	switch wanted.Kind {
	case "", outageGone, outageLost, outageLostBefore, outageGateway, outageGatewayBefore, outageTimeout, outageTimeoutBefore, outageSilent:
	case outageNull, outageShape, outageHalf, outageHuge:
	default:
		return fmt.Errorf("%q is no kind of outage", wanted.Kind)
	}
	o.Lock()
	defer o.Unlock()
	o.Kind, o.Nth, o.Method, o.Seconds, o.Seen = wanted.Kind, wanted.Nth, wanted.Method, wanted.Seconds, 0
	return nil
}

func (o *outage) get() interface{} {
	o.Lock()
	defer o.Unlock()
	return map[string]interface{}{"kind": o.Kind, "nth": o.Nth, "method": o.Method, "seconds": o.Seconds, "seen": o.Seen}
}

// strike counts a request, and returns the kind of the outage if it applies to this one.
func (o *outage) strike(method string) string {
	o.Lock()
	defer o.Unlock()
	if o.Kind == "" || !globMatch(o.Method, method) {
		return ""
	}
	if o.Seen++; o.Seen != o.Nth {
		return ""
	}
	return o.Kind
}

// serveThroughOutage handles a call under the current outage.
func (g *gate) serveThroughOutage(w http.ResponseWriter, r *http.Request, c *call) {
	kind := g.outage.strike(c.method)
	switch kind {
	case outageGone:
		g.line.cut(seconds(g.outage.Seconds))
		panic(http.ErrAbortHandler)
	case outageSilent:
		g.settings.setMute(true)
	case outageTimeout:
		late := r.Clone(context.Background())
		time.AfterFunc(seconds(g.outage.Seconds), func() { g.doCall(discard{http.Header{}}, late, c) })
	case outageLost, outageGateway, outageNull, outageShape, outageHuge:
		g.doCall(discard{http.Header{}}, r, c)
	}
	switch kind {
	case outageLost, outageLostBefore:
		panic(http.ErrAbortHandler) // closes the connection without an answer
	case outageGateway, outageGatewayBefore:
		http.Error(w, "<html><body>Bad Gateway</body></html>", http.StatusBadGateway)
	case outageTimeout, outageTimeoutBefore:
		http.Error(w, "<html><body>Gateway Timeout</body></html>", http.StatusGatewayTimeout)
	case outageNull:
		writeResponse(w, c.method, emptyResponse{})
	case outageShape:
		writeResponse(w, c.method, oddResponse{oddValue{"odd", oddObject{"odd"}}})
	case outageHalf:
		whole := &recorder{header: w.Header()}
		g.doCall(whole, r, c)
		w.Header().Del("Content-Length")
		_, _ = w.Write(whole.body[:len(whole.body)/2])
	case outageHuge:
		writeForever(w, c.method)
	default:
		g.doCall(w, r, c)
	}
}

// oddResponse has elements that are common to most values, with invalid contents.
type oddResponse struct {
	Returnval oddValue `xml:"returnval"`
}

type oddValue struct {
	Version string    `xml:"version"`
	Objects oddObject `xml:"objects"`
}

type oddObject struct {
	PropSet string `xml:"propSet"`
}

// recorder is a response writer that stores the answer.
type recorder struct {
	header http.Header
	body   []byte
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(int)     {}
func (r *recorder) Write(b []byte) (int, error) {
	r.body = append(r.body, b...)
	return len(b), nil
}

// writeForever writes an answer of white space until the connection is closed.
func writeForever(w http.ResponseWriter, method string) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	fmt.Fprintf(w, `<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><%sResponse xmlns="urn:vim25">`, method)
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	for {
		if _, err := w.Write(blanks); err != nil {
			return
		}
	}
}

// line is the server's listener with its open connections; it can be cut for a while.
type line struct {
	mu       sync.Mutex
	address  string
	listener net.Listener
	back     chan struct{} // closed while the server listens
	open     map[*net.TCPConn]bool
}

func newLine(listener net.Listener) *line {
	l := &line{address: listener.Addr().String(), listener: listener, back: make(chan struct{}), open: map[*net.TCPConn]bool{}}
	close(l.back)
	return l
}

// cut resets all connections and refuses new ones for a time.
func (l *line) cut(length time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.back:
	default:
		return // it is already cut
	}
	l.back = make(chan struct{})
	l.listener.Close()
	for conn := range l.open {
		_ = conn.SetLinger(0) // a reset instead of an end of stream
		conn.Close()
	}
	l.open = map[*net.TCPConn]bool{}
	time.AfterFunc(length, l.listenAgain)
}

func (l *line) listenAgain() {
	for {
		listener, err := net.Listen("tcp", l.address)
		if err == nil {
			l.mu.Lock()
			l.listener = listener
			close(l.back)
			l.mu.Unlock()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Accept waits while the line is cut.
func (l *line) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		listener, back := l.listener, l.back
		l.mu.Unlock()
		<-back
		conn, err := listener.Accept()
		l.mu.Lock()
		away := l.listener != listener
		select {
		case <-l.back:
		default:
			away = true
		}
		if err == nil && !away {
			tcp := conn.(*net.TCPConn)
			l.open[tcp] = true
			l.mu.Unlock()
			return &lineConn{tcp, l}, nil
		}
		l.mu.Unlock()
		if err == nil {
			conn.Close()
		} else if !away {
			return nil, err
		}
	}
}

// Close closes the listener.
func (l *line) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.listener.Close()
}

// Addr is the listener's address.
func (l *line) Addr() net.Addr { return l.listener.Addr() }

type lineConn struct {
	*net.TCPConn
	line *line
}

func (c *lineConn) Close() error {
	c.line.mu.Lock()
	delete(c.line.open, c.TCPConn)
	c.line.mu.Unlock()
	return c.TCPConn.Close()
}
