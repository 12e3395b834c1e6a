package receiver

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Wire types of the protobuf encoding.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

var errTruncated = errors.New("protobuf message ends within a field")

// scanner walks over the fields of one protobuf message without copying.
type scanner struct {
	data []byte
	err  error

	// The current field: number holds its tag's number, and by wire type either value or bytes its content.
	number int
	wire   int
	value  uint64
	bytes  []byte
}

func scan(data []byte) scanner { return scanner{data: data} }

// next moves to the next field. It returns false at the end and on an error, which err then holds.
func (s *scanner) next() bool {
	if len(s.data) == 0 || s.err != nil {
		return false
	}
	var tag uint64
	if tag = uint64(s.data[0]); tag < 0x80 {
		s.data = s.data[1:]
	} else if tag = s.varint(); s.err != nil {
		return false
	}
	s.wire = int(tag & 7)
	if tag>>3 == 0 || tag>>3 >= 1<<29 {
		s.err = fmt.Errorf("protobuf field number %d is not valid", tag>>3)
		return false
	}
	s.number = int(tag >> 3)
	switch s.wire {
	case wireVarint:
		s.value = s.varint()
		return s.err == nil
	case wireFixed64:
		if len(s.data) < 8 {
			s.err = errTruncated
			return false
		}
		s.value = binary.LittleEndian.Uint64(s.data)
		s.data = s.data[8:]
		return true
	case wireBytes:
		size := s.varint()
		if s.err != nil {
			return false
		}
		if size > uint64(len(s.data)) {
			s.err = errTruncated
			return false
		}
		s.bytes = s.data[:size:size]
		s.data = s.data[size:]
		return true
	case wireFixed32:
		if len(s.data) < 4 {
			s.err = errTruncated
			return false
		}
		s.value = uint64(binary.LittleEndian.Uint32(s.data))
		s.data = s.data[4:]
		return true
	default:
		s.err = fmt.Errorf("protobuf field %d has unknown wire type %d", s.number, s.wire)
		return false
	}
}

func (s *scanner) varint() uint64 {
	v, size := binary.Uvarint(s.data)
	if size <= 0 {
		s.err = errTruncated
		if size < 0 {
			s.err = errors.New("protobuf varint is longer than 64 bits")
		}
		return 0
	}
	s.data = s.data[size:]
	return v
}

// want reports whether the current field has the given wire type; another one is an error.
func (s *scanner) want(wire int) bool {
	if s.wire != wire {
		s.err = fmt.Errorf("protobuf field %d has wire type %d, want %d", s.number, s.wire, wire)
		return false
	}
	return true
}
