// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	stdxml "encoding/xml"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// call is one SOAP request.
type call struct {
	method  string
	this    types.ManagedObjectReference
	body    []byte
	user    *user
	session string
}

// target is the VM of a call, or none.
func (c *call) target() *simulator.VirtualMachine {
	ref := c.this
	if snapshot, ok := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot); ok {
		ref = snapshot.Vm
	}
	vm, _ := simulator.Map.Get(ref).(*simulator.VirtualMachine)
	return vm
}

// makesTask reports if the call is answered with one of our own tasks.
func (c *call) makesTask() bool {
	ofVM := c.this.Type == "VirtualMachine" || c.this.Type == "VirtualMachineSnapshot"
	return ofVM && strings.HasSuffix(c.method, "_Task")
}

// parseCall only reads the name of the method and the object it is called on.
func parseCall(body []byte) (*call, error) {
	c := &call{body: body}
	decoder := stdxml.NewDecoder(bytes.NewReader(body))
	inBody := false
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			return nil, fmt.Errorf("no method in the request")
		}
		if err != nil {
			return nil, err
		}
		start, ok := token.(stdxml.StartElement)
		switch {
		case !ok:
		case !inBody:
			inBody = start.Name.Local == "Body"
		case c.method == "":
			c.method = start.Name.Local
		default: // _this is the first argument of every method
			for _, attribute := range start.Attr {
				if attribute.Name.Local == "type" {
					c.this.Type = attribute.Value
				}
			}
			return c, decoder.DecodeElement(&c.this.Value, &start)
		}
	}
}

// decode converts the complete request to govmomi's request type.
func (c *call) decode() (interface{}, error) {
	method, err := simulator.UnmarshalBody(types.TypeFunc(), c.body)
	if err != nil {
		return nil, err
	}
	return method.Body, nil
}

// given reports if the call has this argument: govmomi's types do not distinguish an empty text from none.
func (c *call) given(argument string) bool {
	decoder := stdxml.NewDecoder(bytes.NewReader(c.body))
	depth := 0
	for {
		token, err := decoder.Token()
		if err != nil {
			return false
		}
		switch token := token.(type) {
		case stdxml.StartElement:
			depth++
			if depth == 4 && token.Name.Local == argument { // Envelope, Body, method, argument
				return true
			}
		case stdxml.EndElement:
			depth--
		}
	}
}

type envelope struct {
	XMLName xml.Name    `xml:"soapenv:Envelope"`
	Env     string      `xml:"xmlns:soapenv,attr"`
	XSD     string      `xml:"xmlns:xsd,attr"`
	XSI     string      `xml:"xmlns:xsi,attr"`
	Body    interface{} `xml:"soapenv:Body"`
}

// named encodes a value with the given element name.
type named struct {
	name  string
	kind  string
	value interface{}
}

func (n named) MarshalXML(e *xml.Encoder, _ xml.StartElement) error {
	start := xml.StartElement{Name: xml.Name{Local: n.name}}
	start.Attr = append(start.Attr, xml.Attr{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"})
	if n.kind != "" {
		start.Attr = append(start.Attr, xml.Attr{Name: xml.Name{Local: "xsi:type"}, Value: n.kind})
	}
	return e.EncodeElement(n.value, start)
}

type faultElement struct {
	XMLName xml.Name `xml:"soapenv:Fault"`
	Code    string   `xml:"faultcode"`
	String  string   `xml:"faultstring"`
	Detail  struct {
		Fault named
	} `xml:"detail"`
}

func write(w http.ResponseWriter, status int, body interface{}) {
	var out bytes.Buffer
	out.WriteString(xml.Header)
	err := xml.NewEncoder(&out).Encode(envelope{
		Env:  "http://schemas.xmlsoap.org/soap/envelope/",
		XSD:  "http://www.w3.org/2001/XMLSchema",
		XSI:  "http://www.w3.org/2001/XMLSchema-instance",
		Body: body,
	})
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(out.Bytes())
}

// writeResponse answers a call with a struct whose only field is returnval, or with an empty one.
func writeResponse(w http.ResponseWriter, method string, response interface{}) {
	write(w, http.StatusOK, struct{ Response named }{named{name: method + "Response", value: response}})
}

func writeFault(w http.ResponseWriter, fault types.BaseMethodFault) {
	kind := reflect.TypeOf(fault).Elem().Name()
	element := faultElement{Code: "ServerFaultCode", String: faultMessage(fault)}
	element.Detail.Fault = named{name: kind + "Fault", kind: kind, value: fault}
	write(w, http.StatusInternalServerError, struct{ Fault faultElement }{element})
}

// soapFault does the same for our own objects that govmomi's service calls.
func soapFault(fault types.BaseMethodFault) *soap.Fault {
	return simulator.Fault(faultMessage(fault), fault)
}

type refResponse struct {
	Returnval types.ManagedObjectReference `xml:"returnval"`
}

type emptyResponse struct{}
