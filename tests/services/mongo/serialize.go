package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// MongoDB changes a document in one step. FerretDB 1.24 reads it, and writes it later: two changes at a time may lose
// one of them. So messages pass through here, and those that change documents one after the other.

const (
	header     = 16
	opMsg      = 2013
	maxMessage = 48_000_000
)

var changing = map[string]bool{
	"update": true, "findAndModify": true, "findandmodify": true, "delete": true, "createIndexes": true,
}

var oneByOne sync.Mutex

// serve takes clients at an address, and passes their messages on to a Unix socket.
func serve(address, socket string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go pass(client, socket)
	}
}

func pass(client net.Conn, socket string) {
	defer client.Close()
	server, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer server.Close()
	for {
		message, err := read(client)
		if err != nil {
			return
		}
		answer, err := ask(server, message)
		if err != nil {
			return
		}
		if _, err := client.Write(answer); err != nil {
			return
		}
	}
}

func ask(server net.Conn, message []byte) ([]byte, error) {
	if changing[command(message)] {
		oneByOne.Lock()
		defer oneByOne.Unlock()
	}
	if _, err := server.Write(message); err != nil {
		return nil, err
	}
	return read(server)
}

func read(from net.Conn) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(length[:])
	if size < header || size > maxMessage {
		return nil, errors.New("not a message")
	}
	message := make([]byte, size)
	copy(message, length[:])
	_, err := io.ReadFull(from, message[4:])
	return message, err
}

// command is the first key of the message's document: header, flags, kind of section, length, type of value, key.
func command(message []byte) string {
	const key = header + 4 + 1 + 4 + 1
	if len(message) <= key || binary.LittleEndian.Uint32(message[12:]) != opMsg || message[header+4] != 0 {
		return ""
	}
	for end := key; end < len(message); end++ {
		if message[end] == 0 {
			return string(message[key:end])
		}
	}
	return ""
}
