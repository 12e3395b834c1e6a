package stream

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var testRejection = Rejection{
	Endpoint: "prod", Protocol: 2, Status: 400, Answer: "label \"é\" is too long\n", Time: 1_767_225_600_123, Samples: 3, Body: []byte{0, 1, 0xff},
}

func TestRejectionsAreReadAsWritten(t *testing.T) {
	for _, want := range []Rejection{{}, testRejection} {
		msg, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ReadRejection(msg)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(&want, got); d != "" {
			t.Errorf("a rejection changed (-want +got):\n%s", d)
		}
	}
}

func TestWhatIsNoRejectionIsRefused(t *testing.T) {
	msg, err := testRejection.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "another version": append([]byte{rejectionVersion + 1}, msg[1:]...), "a part": msg[:len(msg)-1], "a version alone": msg[:1],
		"another type": {rejectionVersion, 0xc3},
	} {
		if r, err := ReadRejection(bad); !errors.Is(err, ErrRejection) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func FuzzReadRejection(f *testing.F) {
	msg, err := testRejection.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Add([]byte{rejectionVersion, 0x81, 0xa4, 'b', 'o', 'd', 'y', 0xc6, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadRejection(b)
		if err != nil {
			if !errors.Is(err, ErrRejection) {
				t.Errorf("error %v does not wrap ErrRejection", err)
			}
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := ReadRejection(again)
		if err != nil || !cmp.Equal(r, back) {
			t.Errorf("%+v was read again as %+v: %v", r, back, err)
		}
	})
}

func FuzzDecodePosition(f *testing.F) {
	f.Add(encodePosition(storedPosition{Seq: 1, Mark: 1 << 40, Generation: 3, Owner: 1 << 63}))
	f.Add([]byte{positionVersion, 0xdf, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{positionVersion, 0x82, 0xa3, 's', 'e', 'q', 7, 0xa4, 'm', 'a', 'r', 'k', 9}) // without the fields that came later
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePosition(b)
		if err != nil {
			if !reflect.DeepEqual(p, storedPosition{}) {
				t.Errorf("an error with the position %+v", p)
			}
			return
		}
		if back, err := decodePosition(encodePosition(p)); err != nil || !bytes.Equal(encodePosition(back), encodePosition(p)) {
			t.Errorf("%+v was read again as %+v: %v", p, back, err)
		}
	})
}
