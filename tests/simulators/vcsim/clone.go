// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"time"
)

// clone makes a deep copy of a value: the simulator edits configurations in place.
func clone(value interface{}) interface{} {
	if value == nil {
		return nil
	}
	return cloneValue(reflect.ValueOf(value)).Interface()
}

var timeType = reflect.TypeOf(time.Time{})

func cloneValue(value reflect.Value) reflect.Value {
	switch value.Kind() {
	case reflect.Ptr, reflect.Interface:
		if value.IsNil() {
			return value
		}
		if value.Kind() == reflect.Ptr {
			copied := reflect.New(value.Type().Elem())
			copied.Elem().Set(cloneValue(value.Elem()))
			return copied
		}
		copied := reflect.New(value.Type()).Elem()
		copied.Set(cloneValue(value.Elem()))
		return copied
	case reflect.Slice:
		if value.IsNil() {
			return value
		}
		copied := reflect.MakeSlice(value.Type(), value.Len(), value.Len())
		for i := 0; i < value.Len(); i++ {
			copied.Index(i).Set(cloneValue(value.Index(i)))
		}
		return copied
	case reflect.Struct:
		if value.Type() == timeType {
			return value
		}
		copied := reflect.New(value.Type()).Elem()
		copied.Set(value)
		for i := 0; i < value.NumField(); i++ {
			if field := copied.Field(i); field.CanSet() {
				field.Set(cloneValue(value.Field(i)))
			}
		}
		return copied
	}
	return value
}

// strictUnmarshal refuses unknown fields, so that a typo in a test is an error.
func strictUnmarshal(text []byte, into interface{}) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}
