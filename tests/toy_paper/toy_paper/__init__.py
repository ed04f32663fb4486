"A paper for ccreid: a method, a kind of images, two rows, a command"
