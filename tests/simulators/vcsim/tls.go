// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// makeCertificate creates a CA, writes it to caPath, and returns a server certificate that it signed.
func makeCertificate(caPath, names string) (tls.Certificate, error) {
	var none tls.Certificate
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, err
	}
	from, to := time.Now().Add(-time.Hour), time.Now().Add(30*24*time.Hour)
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "safepoint.vm test CA"},
		NotBefore:             from,
		NotAfter:              to,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	caBytes, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return none, err
	}
	// Parsed again, it has the key id that Python 3.13 requires in the server's certificate.
	if ca, err = x509.ParseCertificate(caBytes); err != nil {
		return none, err
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "vcenter.test"},
		NotBefore:    from,
		NotAfter:     to,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range strings.Split(names, ",") {
		if address := net.ParseIP(name); address != nil {
			server.IPAddresses = append(server.IPAddresses, address)
		} else {
			server.DNSNames = append(server.DNSNames, name)
		}
	}
	serverBytes, err := x509.CreateCertificate(rand.Reader, server, ca, &key.PublicKey, caKey)
	if err != nil {
		return none, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caBytes})
	return tls.Certificate{Certificate: [][]byte{serverBytes}, PrivateKey: key}, os.WriteFile(caPath, text, 0o644)
}

// serveTLS serves the gate on connections that can be muted.
func serveTLS(listener net.Listener, certificate tls.Certificate, g *gate) error {
	server := &http.Server{
		Handler:      g,
		TLSConfig:    &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // vCenter only supports HTTP/1.1
		// Hide errors about refused certificates. A panic of a handler still goes to stderr.
		ErrorLog: log.New(panicLog{}, "", 0),
	}
	return server.ServeTLS(&muteListener{listener, g}, "", "")
}

type panicLog struct{}

func (panicLog) Write(text []byte) (int, error) {
	if strings.Contains(string(text), "panic") {
		return os.Stderr.Write(text)
	}
	return len(text), nil
}

// muteListener always accepts; while the server is muted, its connections write nothing, not even in the TLS handshake. Calls do
// not start either: see delayCall.
type muteListener struct {
	net.Listener
	gate *gate
}

type muteConn struct {
	net.Conn
	gate *gate
}

func (l *muteListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.gate.counters.connection()
	return &muteConn{conn, l.gate}, nil
}

func (c *muteConn) Write(b []byte) (int, error) {
	c.gate.settings.whileMute()
	n, err := c.Conn.Write(b)
	c.gate.counters.sent(n)
	return n, err
}
