// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// A vCenter for tests: govmomi's simulator as Debian ships it, extended for clients that work with snapshots.
//
// The inventory, the views, the property traversal and the SOAP types are govmomi's. Before it, a gate (gate.go) counts requests,
// checks sessions and privileges, raises faults, and handles the calls for snapshots; these become tasks with a duration
// (tasks.go). With -stock every request goes to the unchanged simulator.
//
// It prints one line of JSON when it is ready, and ends when its standard input is closed.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/vmware/govmomi/simulator"
)

type options struct {
	folder     string
	vms        int
	stock      bool
	verbose    bool
	user       string
	password   string
	apiVersion string
	tlsNames   string
	faults     faultFlags
}

func parseOptions() options {
	var o options
	flag.StringVar(&o.folder, "folder", "", "put ca.pem and the datastores into this folder, and remove it at the end (default: a new one)")
	flag.IntVar(&o.vms, "vm", 2, "how many VMs to begin with, DC0_C0_RP0_VM0 and so on in /DC0/vm")
	flag.BoolVar(&o.stock, "stock", false, "add nothing to the simulator but the counters and the making of VMs")
	flag.BoolVar(&o.verbose, "verbose", false, "let the simulator log to stderr")
	flag.StringVar(&o.user, "username", "administrator@vsphere.local", "who may do everything")
	flag.StringVar(&o.password, "password", "vc-Pa55word", "the password of all users")
	flag.StringVar(&o.apiVersion, "api-version", "", "report this version of the API")
	flag.StringVar(&o.tlsNames, "tls-names", "localhost,127.0.0.1", "names and addresses in the server's certificate")
	flag.Var(&o.faults, "fault", "method:vm-glob:FaultType[:nth], may be given again; see faults.go")
	flag.Parse()
	return o
}

func main() {
	o := parseOptions()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		// The parent process holds the other end, which closes when that process dies in any way: so no server remains.
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended <- syscall.SIGTERM
	}()
	if !o.verbose {
		log.SetOutput(io.Discard) // the simulator logs every round of every wait
	}
	if err := run(o, ended); err != nil {
		fmt.Fprintln(os.Stderr, "vcsim:", err)
		os.Exit(1)
	}
}

func run(o options, ended <-chan os.Signal) error {
	var err error
	if o.folder == "" {
		if o.folder, err = os.MkdirTemp("", "vcsim-"); err != nil {
			return err
		}
	}
	defer os.RemoveAll(o.folder)
	// The simulator puts each datastore into a separate temporary folder.
	if err = os.Setenv("TMPDIR", o.folder); err != nil {
		return err
	}
	caPath := filepath.Join(o.folder, "ca.pem")
	certificate, err := makeCertificate(caPath, o.tlsNames)
	if err != nil {
		return err
	}

	model := simulator.VPX()
	model.Host = 0
	model.ClusterHost = 1
	model.Machine = o.vms
	if o.apiVersion != "" {
		model.ServiceContent.About.ApiVersion = o.apiVersion
	}
	if err = model.Create(); err != nil {
		return err
	}
	defer model.Remove()
	service := model.Service
	service.RegisterSDK(simulator.Map)

	g := newGate(service, o.stock)
	if o.stock {
		service.Listen = &url.URL{User: url.UserPassword(o.user, o.password)}
	} else {
		service.Listen = &url.URL{} // accepts all logins: the gate checks them
		g.users = makeUsers(o.user, o.password)
		g.faults.add(o.faults...)
		extend(g.world)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	g.line = newLine(listener)
	controlListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- serveTLS(g.line, certificate, g) }()
	go func() { failed <- http.Serve(controlListener, newControl(g)) }()

	_ = json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"port":         listener.Addr().(*net.TCPAddr).Port,
		"control_port": controlListener.Addr().(*net.TCPAddr).Port,
		"ca_path":      caPath,
		"username":     o.user,
		"password":     o.password,
	})
	select {
	case <-ended:
		return nil
	case err = <-failed:
		return err
	}
}
